"""Dialects: each module turns one client dialect into a `kernel.chat.ChatRequest` and back."""
