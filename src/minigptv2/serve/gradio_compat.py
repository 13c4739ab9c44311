"""Holds every use of gradio that its documentation does not promise, so that an upgrade has one place to check.

`tests/serve/test_gradio_compat.py` tests each item against the installed version.
"""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr

CUSTOM_EVENTS = ("upload", "select")
"""The events that the elements of `page.js` trigger."""


async def refuse_download(url: str, cache_dir: str) -> str:
    """Stand in for gradio's download function. Always raises `gr.Error`, which the page shows."""
    raise gr.Error("this server does not download addresses")


def forbid_downloads() -> None:
    """Keep gradio from downloading addresses that a browser names (a security fix).

    gradio fetches an address that an event gives as a file, writes it to a folder, and has no option against it.
    """
    name = "async_ssrf_protected_download"
    assert inspect.iscoroutinefunction(getattr(gr.processing_utils, name, None)), f"gradio has no {name} to replace"
    gr.processing_utils.async_ssrf_protected_download = refuse_download


def limit_sessions(blocks: gr.Blocks, sessions: int) -> None:
    """Keep the state of at most `sessions` visitors. gradio takes this limit in `launch` but not when mounted."""
    assert isinstance(blocks.state_session_capacity, int), "gradio has no session limit"
    blocks.state_session_capacity = sessions


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What a browser sent with an event, or an empty object for anything but a JSON object."""
    data = event._data
    return data if isinstance(data, dict) else {}


def custom_element(kind: str, skeleton: str, value: Any, **props: Any) -> gr.HTML:
    """An element that the function `kind` of `page.js` builds inside the HTML `skeleton` from `value` and `props`.

    The skeleton never contains the value, because gradio would interpret it as markup. gradio offers the events of
    an HTML component whose quoted names it finds in its script, hence the comment.
    """
    events = ", ".join(f"'{name}'" for name in CUSTOM_EVENTS)
    return gr.HTML(
        value,
        html_template=skeleton,
        elem_id=kind,
        apply_default_css=False,
        js_on_load=f"/* {events} */ window.minigptv2.{kind}(element, props, trigger, watch);",
        **props,
    )
