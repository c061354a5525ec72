"""The keys of Ubuntu's autoinstall files and of cloud-config, with the types their readers want.

Sources: Subiquity's "Autoinstall configuration reference" (version 1), cloud-init's module reference.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Command = str | list[str]


class _Section(BaseModel):
    """A mapping whose keys are all known; a field's name with '-' is its key."""

    model_config = ConfigDict(
        extra="forbid", strict=True, alias_generator=lambda name: name.replace("_", "-"), populate_by_name=False
    )


class Identity(_Section):
    hostname: str
    username: str
    password: str
    realname: str = ""
    groups: Any = None


class Keyboard(_Section):
    layout: str
    variant: str | None = None
    toggle: str | None = None


class Ssh(_Section):
    install_server: bool = False
    authorized_keys: list[str] = []
    allow_pw: bool = False


class Source(_Section):
    search_drivers: bool = Field(False, alias="search_drivers")
    id: str = ""


class RefreshInstaller(_Section):
    update: bool = False
    channel: str = ""


class Kernel(_Section):
    package: str = ""
    flavor: str = ""


class KernelCrashDumps(_Section):
    enabled: bool | None = None


class Snap(_Section):
    name: str
    channel: str = ""
    classic: bool = False


class Codecs(_Section):
    install: bool = False


class Oem(_Section):
    install: bool | Literal["auto"] = "auto"


class ActiveDirectory(_Section):
    admin_name: str = ""
    domain_name: str = ""


class UbuntuPro(_Section):
    token: str


class Autoinstall(_Section):
    """Subiquity's top level."""

    version: Literal[1]
    interactive_sections: list[str] = []
    early_commands: list[Command] = []
    late_commands: list[Command] = []
    error_commands: list[Command] = []
    locale: str = ""
    refresh_installer: RefreshInstaller = RefreshInstaller()
    keyboard: Keyboard | None = None
    source: Source = Source()
    network: dict[str, Any] | None = None
    proxy: str | None = None
    apt: dict[str, Any] = {}
    storage: dict[str, Any] = {}
    identity: Identity | None = None
    active_directory: ActiveDirectory | None = None
    ubuntu_pro: UbuntuPro | None = None
    ssh: Ssh = Ssh()
    codecs: Codecs = Codecs()
    drivers: Codecs = Codecs()
    oem: Oem = Oem()
    snaps: list[Snap] = []
    debconf_selections: str = Field("", alias="debconf-selections")
    packages: list[str] = []
    kernel: Kernel = Kernel()
    kernel_crash_dumps: KernelCrashDumps = KernelCrashDumps()
    timezone: str = ""
    updates: Literal["security", "all"] = "security"
    shutdown: Literal["reboot", "poweroff"] = "reboot"
    reporting: dict[str, dict[str, Any]] = {}
    user_data: dict[str, Any] | None = None
    zdevs: list[dict[str, Any]] = []


class WriteFile(BaseModel):
    """One of cloud-config's write_files."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    content: str | bytes = ""
    source: dict[str, Any] = {}
    owner: str = ""
    permissions: str = ""
    encoding: str = ""
    append: bool = False
    defer: bool = False


class CloudConfig(BaseModel):
    """The keys of cloud-config whose types people get wrong; the rest is only known by name."""

    model_config = ConfigDict(extra="ignore", strict=True)

    hostname: str = ""
    fqdn: str = ""
    locale: str | bool = ""
    timezone: str = ""
    users: list[str | dict[str, Any]] | dict[str, Any] | str = []
    groups: list[str | dict[str, Any]] | dict[str, Any] | str = []
    ssh_authorized_keys: list[str] = []
    ssh_pwauth: bool | str | None = None
    disable_root: bool = True
    packages: list[str | list[str] | dict[str, Any]] = []
    package_update: bool = False
    package_upgrade: bool = False
    runcmd: list[Command | None] = []
    bootcmd: list[Command] = []
    write_files: list[WriteFile] = []
    chpasswd: dict[str, Any] = {}
    growpart: dict[str, Any] = {}
    power_state: dict[str, Any] = {}
    final_message: str = ""
    manage_etc_hosts: bool | Literal["localhost", "template"] = False
    mounts: list[list[Any]] = []
    ntp: dict[str, Any] | None = None
    apt: dict[str, Any] = {}


_KEYS = """
    allow_public_ssh_keys ansible apk_repos apt_pipelining apt_reboot_if_required apt_update apt_upgrade
    authkey_hash autoinstall bootcmd byobu_by_default ca-certs ca_certs chef cloud_config_modules
    cloud_final_modules cloud_init_modules create_hostname_file datasource datasource_list debug device_aliases
    disable_ec2_metadata disable_root_opts disk_setup drivers fan fs_setup grub-dpkg grub_dpkg init_clean
    install_hotplug keyboard
    landscape locale_configfile lxd manage_resolv_conf mcollective merge_how merge_type migrate mount_default_fields
    network no_ssh_fingerprints output package_reboot_if_required password phone_home power_state
    prefer_fqdn_over_hostname preserve_hostname puppet random_seed reporting resize_rootfs resolv_conf
    rh_subscription rpi rsyslog runcmd salt_minion snap spacewalk ssh ssh_deletekeys ssh_fp_console_blacklist
    ssh_genkeytypes ssh_import_id ssh_key_console_blacklist ssh_keys ssh_publish_hostkeys ssh_quiet_keygen swap
    system_info ubuntu_advantage ubuntu_pro unverified_modules updates user vendor_data version wireguard
    yum_repo_dir yum_repos zypper
"""
CLOUD_CONFIG_KEYS = frozenset(CloudConfig.model_fields) | frozenset(_KEYS.split())
"""Every key cloud-init knows at the top."""
