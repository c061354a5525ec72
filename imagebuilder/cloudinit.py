"""Seeds for cloud-init's NoCloud data source: the files of a volume labelled CIDATA, and how our images ask for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from imagebuilder.errors import TemplateError

LABEL = "CIDATA"

IMAGE_CONFIG = """\
# How this image looks for its first settings; a seed (a volume labelled CIDATA) can override all but the first line.
datasource_list: [NoCloud, None]
apt:
  preserve_sources_list: true
ssh_genkeytypes: [ed25519, ecdsa]
ssh_deletekeys: true
ssh: {emit_keys_to_console: false}
grub_dpkg: {enabled: false}
"""
"""/etc/cloud/cloud.cfg.d of an image: no probing of cloud services over the network, which takes minutes where there
are none; the image's own package sources stay; no RSA host key, which takes an emulated machine many seconds; no
questions asked of a GRUB package that isn't there."""


def seed_files(
    *,
    user_data: str = "",
    meta_data: Mapping[str, Any] | None = None,
    network_config: str = "",
    ssh_keys: Sequence[str] = (),
    user: str = "",
    hostname: str = "",
    instance_id: str = "",
) -> dict[str, bytes]:
    """File name -> content for a volume labelled `LABEL`.

    `ssh_keys` (lines of authorized_keys) open `user`, who is made with sudo rights when there is none; root is let in
    over SSH when `user` is "root"; "" is the image's default user. Without `instance_id` one is derived from the rest,
    so that a changed seed is a new instance and an unchanged one is not. TemplateError when user_data isn't YAML
    although it says '#cloud-config'.
    """
    meta = dict(meta_data or {})
    if hostname:
        meta["local-hostname"] = hostname
    vendor: dict[str, Any] = {}
    if ssh_keys and not user:
        meta["public-keys"] = list(ssh_keys)
    elif ssh_keys:
        if not user_data or _is_cloud_config(user_data):
            user_data = _cloud_config({**_parsed(user_data), **_login(_parsed(user_data), user, ssh_keys)})
        else:
            vendor = _login({}, user, ssh_keys)
    files = {"user-data": user_data or "#cloud-config\n{}\n"}
    if vendor:
        files["vendor-data"] = _cloud_config(vendor)
    if network_config:
        files["network-config"] = network_config
    meta["instance-id"] = instance_id or meta.get("instance-id") or _derived_id(files, meta)
    files["meta-data"] = yaml.safe_dump(meta, sort_keys=True, allow_unicode=True)
    return {name: text.encode() for name, text in sorted(files.items())}


def _is_cloud_config(user_data: str) -> bool:
    return user_data.startswith("#cloud-config")


def _cloud_config(settings: Mapping[str, Any]) -> str:
    return "#cloud-config\n" + yaml.safe_dump(dict(settings), sort_keys=True, allow_unicode=True)


def _parsed(user_data: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(user_data)
    except yaml.YAMLError as error:
        raise TemplateError(f"the cloud-init user data is not YAML: {error}") from error
    if settings is not None and not isinstance(settings, dict):
        raise TemplateError("the cloud-init user data must be an object of settings after '#cloud-config'")
    return settings or {}


def _login(settings: Mapping[str, Any], user: str, keys: Sequence[str]) -> dict[str, Any]:
    """What lets `user` in, kept together with the users that the settings have."""
    users = settings.get("users", ["default"])
    users = list(users) if isinstance(users, list) else [users]
    entry: dict[str, Any] = {"name": user, "ssh_authorized_keys": list(keys)}
    if user == "root":
        entry["lock_passwd"] = False  # leave its password as the image has it
    else:
        entry |= {"sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash", "lock_passwd": True}
    same = [other for other in users if isinstance(other, dict) and other.get("name") == user]
    if same:
        merged = {**entry, **same[0]}
        merged["ssh_authorized_keys"] = [*same[0].get("ssh_authorized_keys", []), *keys]
        users[users.index(same[0])] = merged
    else:
        users.append(entry)
    return {"users": users, **({"disable_root": False} if user == "root" else {})}


def _derived_id(files: Mapping[str, str], meta: Mapping[str, Any]) -> str:
    content = json.dumps([files, meta], sort_keys=True, default=str)
    return f"iid-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
