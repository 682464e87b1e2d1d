"""Dialects: each module turns one client dialect into a `kernel.chat.Call` and back."""
