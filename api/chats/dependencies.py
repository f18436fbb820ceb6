"""The owner check of every route below a chat: somebody else's chat and none at all answer alike."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path

from api.auth.dependencies import CurrentUser, Principal, StreamUser
from api.services import Services, ServicesDep
from storage import chats
from storage.chats import ChatRecord
from workflows.contracts.errors import NotFoundError

ChatId = Annotated[UUID, Path(description="The chat's id.")]


async def owned_chat(chat_id: ChatId, user: CurrentUser, services: ServicesDep) -> ChatRecord:
    """The caller's chat. Raises `NotFoundError` for a missing one and for somebody else's alike."""
    return await _find(services, chat_id, user)


async def streamed_chat(chat_id: ChatId, user: StreamUser, services: ServicesDep) -> ChatRecord:
    """As `owned_chat`, where a `?ticket=` in the query string is taken too."""
    return await _find(services, chat_id, user)


async def _find(services: Services, chat_id: UUID, user: Principal) -> ChatRecord:
    async with services.database.reading() as session:
        chat = await chats.get(session, chat_id, user_id=user.user_id)
    if chat is None:
        raise NotFoundError
    return chat


OwnedChat = Annotated[ChatRecord, Depends(owned_chat)]
StreamedChat = Annotated[ChatRecord, Depends(streamed_chat)]
