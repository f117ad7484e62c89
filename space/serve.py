"""The page as the Space's container serves it: the door opens when the storyteller is ready, not before.

streamlit run serve.py
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import streamlit as st
from engine import Engine, chosen_model


@asynccontextmanager
async def storyteller(_: st.App) -> AsyncIterator[None]:
    """Open the model and build its C kernel on this machine, before the first reader comes."""
    engine = await asyncio.to_thread(Engine.load, *chosen_model())
    yield
    engine.close()


app = st.App("app.py", lifespan=storyteller)
