"""Serves a GGUF file through llama.cpp."""
