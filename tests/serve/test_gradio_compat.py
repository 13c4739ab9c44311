"""Tests what the chat page uses of gradio beyond its documentation, against the installed version."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI

from minigptv2.serve import gradio_compat


def test_downloads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = gr.processing_utils.async_ssrf_protected_download
    monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", original)  # restored after the test
    gradio_compat.forbid_downloads()
    with pytest.raises(gr.Error, match="does not download addresses"):
        asyncio.run(gr.processing_utils.async_ssrf_protected_download("http://127.0.0.1:1/x.png", "/nowhere"))


def test_gradio_downloads_through_the_replaced_function_only() -> None:
    from gradio import blocks

    assert "processing_utils.async_ssrf_protected_download(" in inspect.getsource(blocks)


@pytest.mark.parametrize("found", [None, lambda url, cache_dir: url])
def test_a_gradio_without_the_download_function_is_not_served(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", found)
    with pytest.raises(AssertionError, match="to replace"):
        gradio_compat.forbid_downloads()


def test_the_number_of_sessions_is_limited() -> None:
    with gr.Blocks() as blocks:
        gr.State(0)
    gradio_compat.limit_sessions(blocks, 3)
    app = gr.mount_gradio_app(FastAPI(), blocks, path="/")
    mounted = [route.app for route in app.routes if isinstance(getattr(route, "app", None), gr.routes.App)]
    assert [page.state_holder.capacity for page in mounted] == [3]


@pytest.mark.parametrize("data", [{"picture": "x"}, {}])
def test_the_data_of_an_event_is_its_object(data: dict[str, Any]) -> None:
    assert gradio_compat.event_data(gr.EventData(None, data)) == data


@pytest.mark.parametrize("data", [None, [1], "x", 3])
def test_event_data_that_is_no_object_is_empty(data: Any) -> None:
    assert gradio_compat.event_data(gr.EventData(None, data)) == {}


def test_an_element_has_its_events_and_keeps_its_value_out_of_the_markup() -> None:
    with gr.Blocks():
        element = gradio_compat.custom_element("talk", "<div></div>", {"text": "<b>bold</b>"}, hint="a hint")
        for name in gradio_compat.CUSTOM_EVENTS:
            getattr(element, name)(lambda: None, None, None)
    config = element.get_config()
    assert config["html_template"] == "<div></div>" and "bold" not in config["js_on_load"]
    assert "window.minigptv2.talk(" in config["js_on_load"]
