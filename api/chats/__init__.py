"""Chats: sessions, messages, and a WebSocket that speaks both ways."""
