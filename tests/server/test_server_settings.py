"""Settings by flag, environment and file; their documentation."""

import re
import sys
from dataclasses import fields

import pytest
import typer

import refresh_server_docs as page
from idefics.cli.command import add_command
from idefics.cli.main import run
from idefics.cli.serve import UIModelFlags, _make_ui_settings, serve
from idefics.errors import BadSetting
from idefics.server.settings import Settings, read_settings


def test_precedence_of_flags_environment_and_file(tmp_path, monkeypatch):
    file = tmp_path / "server.toml"
    file.write_text('port = 1001\nname = "file"\ndrain = 1.5\noffline = true\napi_key_file = "keys"\n')
    monkeypatch.setenv("IDEFICS_PORT", "1002")
    monkeypatch.setenv("IDEFICS_NAME", "environment")
    monkeypatch.setenv("IDEFICS_UNRELATED", "1")
    settings = read_settings({"port": 1003}, file)
    assert (settings.port, settings.name, settings.drain) == (1003, "environment", 1.5)
    assert settings.offline is True
    assert str(settings.api_key_file) == "keys"
    assert settings.host == Settings().host


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "unknown setting 'prot'"),
        ("port = 'x'", "port is 'x'"),
        ("port = 70000", "from 0 to 65535"),
        ("port = ", "cannot be read"),
        ("host = '0.0.0.0'", "no key"),
        ("remote_images = 'any'", "any"),
    ],
)
def test_invalid_values_are_refused(tmp_path, text, words):
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(BadSetting, match=re.escape(words)):
        read_settings({}, file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadSetting, match="no such file"):
        read_settings({}, tmp_path / "none.toml")


def test_an_invalid_variable_is_refused(monkeypatch):
    monkeypatch.setenv("IDEFICS_REQUESTS_AT_ONCE", "many")
    with pytest.raises(BadSetting, match="requests_at_once is 'many'"):
        read_settings({})


def test_keys_are_not_shown():
    assert "secret" not in repr(Settings(api_key="secret"))


def test_only_the_last_part_of_a_path_is_reported():
    assert Settings(model="/home" + "/me/models/mine").served_model_name == "mine"
    assert Settings(model="a/b").served_model_name == "b"
    assert Settings(model="demo", name="eyes").served_model_name == "eyes"


def test_every_setting_is_a_flag():
    app = typer.Typer()
    add_command(app, serve)
    flags = {flag for param in typer.main.get_command(app).params for flag in param.opts}
    assert {f"--{one.name.replace('_', '-')}" for one in fields(Settings)} <= flags


def test_pictures_of_clients_are_kept_in_files_only_when_told(monkeypatch):
    loaded = []

    def load(flags, *_):
        loaded.append(flags.feature_cache)
        raise BadSetting("far enough")

    run(["serve", "--model", "demo", "--port", "0"], load)
    run(["serve", "--model", "demo", "--port", "0", "--feature-cache"], load)
    monkeypatch.setenv("IDEFICS_FEATURE_CACHE", "1")
    run(["serve", "--model", "demo", "--port", "0"], load)
    run(["ui", "--model", "demo", "--port", "0"], load)
    run(["ui", "--model", "demo", "--port", "0", "--feature-cache"], load)
    assert loaded == [False, True, True, False, True]


def test_the_settings_of_idefics_ui(tmp_path):
    """The page of this machine alone, with batches in a folder that goes."""
    flags = UIModelFlags(model="org/model", remote_images="public")
    settings = _make_ui_settings(flags, tmp_path)
    assert settings == Settings(
        model="org/model", remote_images="public", ui=True, batches=tmp_path, drain=1.0
    )
    assert settings.host == "127.0.0.1"


def test_the_documented_settings_are_up_to_date():
    text = page.SERVER_DOC.read_text(encoding="utf-8")
    assert page.refresh_settings(text) == text, "run scripts/refresh_server_docs.py"
    assert all(f"`--{one.name.replace('_', '-')}`" in text for one in fields(Settings))


def run_refused_flags(*flags):
    """The exit code and the message of `idefics serve` with invalid flags."""

    def load(*_):
        raise AssertionError("a model was loaded")

    return run(["serve", *flags], load)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "there is no key"),
        (["--api-key-file", "nowhere.txt"], "nowhere.txt: the file of keys cannot be read"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--drain", "-1"], "from 0 to 86400"),
        (["--batches", __file__], "cannot hold batches"),
        (["--host", "203.0.113.1", "--insecure", "--port", "0"], "cannot listen on 203.0.113.1, port 0: "),
    ],
)
def test_the_command_refuses_before_any_model_is_loaded(capsys, flags, words):
    assert run_refused_flags(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("idefics serve: ")
    assert words in line


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert run_refused_flags() == 2
    assert "idefics[serve]" in capsys.readouterr().err
