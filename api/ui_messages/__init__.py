"""Chats for clients of the Vercel AI SDK: its UI message stream, version 1, so that `useChat` works as it is."""
