"""NoCloud seeds: what lies in them, and who is let in."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from imagebuilder.cloudinit import IMAGE_CONFIG, seed_files
from imagebuilder.errors import TemplateError

KEY = "ssh-ed25519 AAAA test"


def parsed(content: bytes) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(content)
    return value


def test_smallest_seed() -> None:
    files = seed_files()
    assert sorted(files) == ["meta-data", "user-data"]
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert parsed(files["meta-data"])["instance-id"].startswith("iid-")


def test_keys_of_the_default_user_are_metadata() -> None:
    files = seed_files(user_data="#!/bin/sh\n", ssh_keys=[KEY], hostname="node7")
    assert files["user-data"] == b"#!/bin/sh\n"
    meta = parsed(files["meta-data"])
    assert meta["public-keys"] == [KEY] and meta["local-hostname"] == "node7"


@pytest.mark.parametrize("user_data", ["", "#cloud-config\npackages: [hello]\n"], ids=["none", "cloud-config"])
def test_root_is_let_in(user_data: str) -> None:
    settings = parsed(seed_files(user_data=user_data, ssh_keys=[KEY], user="root")["user-data"])
    assert settings["disable_root"] is False
    assert settings["users"] == ["default", {"name": "root", "ssh_authorized_keys": [KEY], "lock_passwd": False}]
    assert settings.get("packages") == (["hello"] if user_data else None)


def test_a_user_who_is_there_keeps_what_is_his() -> None:
    given = "#cloud-config\nusers:\n- {name: ann, shell: /bin/zsh, ssh_authorized_keys: [old]}\n"
    settings = parsed(seed_files(user_data=given, ssh_keys=[KEY], user="ann")["user-data"])
    (ann,) = settings["users"]
    assert ann["shell"] == "/bin/zsh" and ann["ssh_authorized_keys"] == ["old", KEY]


def test_a_script_as_user_data_stays_whole() -> None:
    files = seed_files(user_data="#!/bin/sh\necho\n", ssh_keys=[KEY], user="ann")
    assert files["user-data"] == b"#!/bin/sh\necho\n"
    assert parsed(files["vendor-data"])["users"][1]["name"] == "ann"


def test_a_changed_seed_is_a_new_instance() -> None:
    first, again, other = (seed_files(hostname=name) for name in ("a", "a", "b"))
    assert first == again
    assert parsed(first["meta-data"])["instance-id"] != parsed(other["meta-data"])["instance-id"]
    assert parsed(seed_files(instance_id="i-7")["meta-data"])["instance-id"] == "i-7"


@pytest.mark.parametrize("text", ["#cloud-config\na: [", "#cloud-config\n- list\n"], ids=["syntax", "list"])
def test_wrong_user_data(text: str) -> None:
    with pytest.raises(TemplateError, match="cloud-init user data"):
        seed_files(user_data=text, ssh_keys=[KEY], user="root")


def test_network_config_travels() -> None:
    assert seed_files(network_config="version: 2\n")["network-config"] == b"version: 2\n"


def test_the_image_asks_no_cloud_over_the_network() -> None:
    assert yaml.safe_load(IMAGE_CONFIG)["datasource_list"] == ["NoCloud", "None"]
