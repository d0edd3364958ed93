"""The embedded engine: llama.cpp, driven step by step through its C interface."""
