"""The measuring client: open and closed loop, streaming, in processes of its own, and honest about its own limits."""
