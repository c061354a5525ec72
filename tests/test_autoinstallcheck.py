"""What installers accept, and what they would refuse or pass over, found before a machine is booted."""

from __future__ import annotations

import shutil

import pytest

from imagebuilder.autoinstall.check import FLAVOURS, check
from imagebuilder.errors import ImgbuildError

KICKSTART = """\
text
lang en_US.UTF-8
keyboard us
timezone UTC --utc
rootpw --lock
user --name=joe --iscrypted --password=$6$a$b
network --bootproto=dhcp
url --url=http://mirror/os
bootloader --append="console=ttyS0"
clearpart --all --initlabel
autopart --type=plain
reboot
%packages
@core
openssh-server
%end
%addon com_redhat_kdump --disable
%end
%post --erroronfail
%something
echo ok
%end
%include http://127.0.0.1:1/never-fetched
"""

PRESEED = """\
# comment
d-i debian-installer/locale string en_US.UTF-8
d-i passwd/root-login boolean false
d-i preseed/late_command string \\
  in-target true; \\
  in-target systemctl enable ssh
tasksel tasksel/first multiselect standard, ssh-server
"""

AUTOINSTALL = """\
#cloud-config
autoinstall:
  version: 1
  identity: {hostname: a, username: b, password: $6$salt$hash}
  ssh: {install-server: true, allow-pw: false, authorized-keys: [ssh-ed25519 AAAA]}
  storage: {layout: {name: direct}}
  packages: [qemu-guest-agent]
  late-commands:
    - curtin in-target -- true
    - [sh, -c, "true"]
  shutdown: reboot
"""

CLOUD_CONFIG = """\
#cloud-config
hostname: a
users: [default, {name: joe, sudo: "ALL=(ALL) NOPASSWD:ALL"}]
ssh_pwauth: false
write_files: [{path: /etc/motd, content: hello, permissions: "0644"}]
runcmd: [[echo, hi], "echo there"]
growpart: {mode: auto}
"""

AUTOYAST = """\
<?xml version="1.0"?>
<!DOCTYPE profile>
<profile xmlns="http://www.suse.com/1.0/yast2ns" xmlns:config="http://www.suse.com/1.0/configns">
  <general><mode><confirm config:type="boolean">false</confirm></mode></general>
</profile>
"""


@pytest.mark.parametrize(
    ("text", "flavour", "version"),
    [
        (KICKSTART, "kickstart", "RHEL9"),
        (KICKSTART, "kickstart", "F41"),
        (PRESEED, "preseed", None),
        (AUTOINSTALL, "autoinstall", None),
        ("version: 1\ninteractive-sections: [identity]\n", "autoinstall", None),
        (CLOUD_CONFIG, "cloud-config", None),
        ("## template: jinja\n#cloud-config\nhostname: a\n", "cloud-config", None),
        (AUTOYAST, "autoyast", None),
        ("", "meta-data", None),
        ("instance-id: a\n", "meta-data", None),
    ],
)
def test_what_is_right(text: str, flavour: str, version: str | None) -> None:
    assert check(text, flavour, version) == []


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        ("frobnicate\n", "RHEL9", ["line 1: Unknown command: frobnicate"]),
        ("lang en_US\nnetwork --bootpr0to=dhcp\nclearpart --everything\n", "RHEL9", ["line 2: ", "line 3: "]),
        ("%packages\n@core\n", "RHEL9", ["%packages does not end with %end"]),
        ("auth --useshadow\n", "RHEL10", ["auth"]),
        ("%nonsense\n%end\n", "F41", ["nonsense"]),
        ("user --name='joe\n", "F41", ["No closing quotation"]),
    ],
)
def test_kickstarts_that_are_wrong(text: str, version: str, expected: list[str]) -> None:
    found = check(text, "kickstart", version)
    assert len(found) == len(expected), found
    for part, problem in zip(expected, found, strict=True):
        assert part in problem


@pytest.mark.parametrize(
    ("text", "flavour", "expected"),
    [
        ("d-i nope\n", "preseed", "line 1: 'd-i nope' is not 'owner question type value'"),
        ("\n# x\nd-i a/b strin x\n", "preseed", "line 3: unknown type 'strin'; did you mean 'string'?"),
        ("d-i a/b boolean yes\n", "preseed", "line 1: 'a/b' must be true or false, got 'yes'"),
        ("d-i a/b string x \\\n  y\nd-i c/d boolean\n", "preseed", "line 3: 'c/d' must be true or false, got ''"),
        ("hostname: a\n", "cloud-config", "line 1: must be '#cloud-config', or cloud-init passes the file over"),
        ("#cloud-config\nhostnam: a\n", "cloud-config", "unknown key 'hostnam'; did you mean 'hostname'?"),
        ("#cloud-config\npackages: vim\n", "cloud-config", "packages: input should be a valid list"),
        ("#cloud-config\nhostname: a\nhostname: b\n", "cloud-config", "line 3: key 'hostname' stands twice"),
        ("#cloud-config\na: [\n", "cloud-config", "line 3: "),
        ("#cloud-config\n- a\n", "cloud-config", "must be a mapping of keys to values"),
        ("#cloud-config\nwrite_files: [{pth: /a, path: /b}]\n", "cloud-config", "write_files.0.pth: unknown key"),
        ("#cloud-config\nhostname: a\n", "autoinstall", "the key 'autoinstall' is missing"),
        ("version: 2\ninteractive-sections: ['*']\n", "autoinstall", "autoinstall.version: input should be 1"),
        ("version: 1\nuser-data: {}\nlate-command: []\n", "autoinstall",
         "autoinstall.late-command: unknown key; did you mean 'late-commands'?"),
        ("version: 1\n", "autoinstall",
         "autoinstall: neither 'identity' nor 'user-data' is there: the installer would ask for a user"),
        ("version: 1\nidentity: {hostname: a, username: b, password: secret}\n", "autoinstall",
         "autoinstall.identity.password: must be a hash like '$6$...', as sha512_crypt gives"),
        ("version: 1\nidentity: {hostname: a, username: b, password: 1}\n", "autoinstall",
         "autoinstall.identity.password: input should be a valid string"),
        ("autoinstall: 5\n", "autoinstall", "autoinstall: must be a mapping of keys to values"),
        ("<profile>", "autoyast", "line 1: is not well-formed XML"),
        ("<profile/>", "autoyast", "the root element must be <profile xmlns="),
        (AUTOYAST.replace(">false<", ">no<"), "autoyast", "<confirm> must be true or false, got 'no'"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", "autoyast", "entities are not used"),
        ("- a\n", "meta-data", "must be a mapping"),
    ],
)  # fmt: skip
def test_others_that_are_wrong(text: str, flavour: str, expected: str) -> None:
    found = check(text, flavour)
    assert found
    assert found[0].startswith(expected), found


@pytest.mark.skipif(shutil.which("debconf-set-selections") is None, reason="debconf is not installed")
def test_debconf_has_its_say() -> None:
    assert any("parse error on line 1" in problem for problem in check("d-i nope\n", "preseed"))


@pytest.mark.parametrize(
    ("flavour", "version", "message", "hint"),
    [
        ("kickstrt", None, "unknown kind of answer file 'kickstrt'", "did you mean 'kickstart'?"),
        ("kickstart", "RHEL99", "unknown kickstart version 'RHEL99'", "did you mean 'RHEL"),
        ("kickstart", None, "unknown kickstart version ''", "known are "),
    ],
)
def test_kinds_and_versions_that_are_not_known(flavour: str, version: str | None, message: str, hint: str) -> None:
    with pytest.raises(ImgbuildError, match=message) as caught:
        check("", flavour, version)
    assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "text", ["\0", "\x80\uffff", "{{{", "<" * 5000, "- " * 2000, "&a [*a]", "#cloud-config\n? {a: b}\n: c\n", "1: 2"]
)
def test_nothing_makes_a_check_fail(flavour: str, text: str) -> None:
    assert isinstance(check(text, flavour, "RHEL9"), list)
