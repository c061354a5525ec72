"""A build's disks on those of its layers, and from them to finished files and back, through the real qemu-img."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.builders import export
from imagebuilder.builders.qemuoptions import QemuOptions
from imagebuilder.builders.workspace import NVRAM, SOURCE, Workspace, copy, disks
from imagebuilder.errors import CommandError, StoreError
from imagebuilder.image import disk
from imagebuilder.image.artifact import Machine, Output
from imagebuilder.layers.record import Layer, Record
from imagebuilder.qemu.arguments import MachineConfig
from imagebuilder.qemu.firmware import Firmware
from tests.images import MIB, context, filled, names, needs_qemu_img, quiet

pytestmark = needs_qemu_img


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "work").mkdir()
    return Workspace(tmp_path / "work")


def write(image: Path, pattern: int, at: int, format: str = "qcow2") -> None:
    """A MiB of this byte, at this MiB of the disk."""
    subprocess.run(["qemu-io", "-f", format, "-c", f"write -q -P {pattern} {at}M 1M", str(image)], check=True)


def reads(image: Path, patterns: Sequence[int]) -> bool:
    """Whether the first MiBs of the disk hold these bytes."""
    commands = [word for at, byte in enumerate(patterns) for word in ("-c", f"read -q -P {byte} {at}M 1M")]
    done = subprocess.run(["qemu-io", "-r", *commands, str(image)], capture_output=True, text=True)
    return done.returncode == 0 and "failed" not in done.stdout


def begin(workspace: Workspace, *, count: int = 1, source: Path | None = None) -> None:
    """What a first boot makes: fresh disks, or one on the image that was given."""
    tops = tuple(workspace.directory / f"disk-{number}.qcow2" for number in range(count))
    for path in tops:
        disk.create(path, 4 * MIB, "qcow2")
    if source is not None:
        (workspace.directory / SOURCE).symlink_to(source.absolute())
        disk.overlay(tops[0], workspace.directory / SOURCE, disk.info(source).format, relative=True)
    workspace.tops = tops


def seal(workspace: Workspace, layer: Path, name: str) -> Layer:
    """A layer of what the guest has written; it goes on writing to overlays."""
    layer.mkdir()
    workspace.seal(name)
    workspace.fill(layer)
    workspace.fill_nvram(layer)
    for path in layer.iterdir():
        path.chmod(0o600)  # as the store does
    workspace.tops = workspace.overlays()
    return Layer(Record(fingerprint="0" * 64), layer, 0.0, 0)


def three_levels(workspace: Workspace, place: Path, *, count: int = 1, source: Path | None = None) -> list[Layer]:
    """Layers a, b and c in folders of their own; each has written a MiB to every disk."""
    begin(workspace, count=count, source=source)
    layers = []
    for level, name in enumerate("abc"):
        for number, top in enumerate(workspace.tops):
            write(top, 16 * (level + 1) + number, level)
        layers.append(seal(workspace, place / name, f"layer-{name}"))
    return layers


def test_what_the_guest_wrote_is_read_through_every_layer(tmp_path: Path, workspace: Workspace) -> None:
    layers = three_levels(workspace, tmp_path)
    assert reads(workspace.tops[0], [16, 32, 48, 0]) and not reads(workspace.tops[0], [16, 33])
    write(workspace.tops[0], 99, 0)
    fresh = Workspace(tmp_path / "fresh")
    fresh.directory.mkdir()
    fresh.restore(layers, ["layer-a", "layer-b", "layer-c"], None)
    assert fresh.tops == fresh.sealed == (fresh.directory / "layer-c.0",)
    assert reads(fresh.tops[0], [16, 32, 48, 0]), "what came after the seal is not in the layer"
    fresh.restore(layers[:2], ["layer-a", "layer-b"], None)
    assert reads(fresh.tops[0], [16, 32, 0, 0]) and names(fresh.directory) == ["layer-a.0", "layer-b.0"]


def test_every_layer_names_the_one_below_without_a_directory(tmp_path: Path, workspace: Workspace) -> None:
    layers = three_levels(workspace, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    backings = []
    for layer in layers:
        moved = layer.path.rename(tmp_path / "elsewhere" / layer.path.name)
        shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(moved / "disk0.qcow2")]))
        backings.append(shown.get("backing-filename"))
    assert backings == [None, "layer-a.0", "layer-b.0"]
    elsewhere = [replace(layer, path=tmp_path / "elsewhere" / layer.path.name) for layer in layers]
    workspace.restore(elsewhere, ["layer-a", "layer-b", "layer-c"], None)
    assert reads(workspace.tops[0], [16, 32, 48, 0])


def test_a_build_goes_on_from_layers_and_adds_to_them(tmp_path: Path, workspace: Workspace) -> None:
    layers = three_levels(workspace, tmp_path)[:2]
    before = [(layer.path / "disk0.qcow2").read_bytes() for layer in layers]
    workspace.restore(layers, ["layer-a", "layer-b"], None)
    workspace.tops = workspace.overlays()
    write(workspace.tops[0], 7, 3)
    layers.append(seal(workspace, tmp_path / "d", "layer-d"))
    workspace.restore(layers, ["layer-a", "layer-b", "layer-d"], None)
    assert reads(workspace.tops[0], [16, 32, 0, 7])
    assert [(layer.path / "disk0.qcow2").read_bytes() for layer in layers[:2]] == before


def test_a_layer_takes_the_file_and_no_copy_of_it(tmp_path: Path, workspace: Workspace) -> None:
    layer = three_levels(workspace, tmp_path)[2]
    assert (layer.path / "disk0.qcow2").samefile(workspace.sealed[0])


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_on_another_file_system_a_layer_is_a_copy(tmp_path: Path) -> None:
    with Output(Path(f"/dev/shm/imgbuild-test-{os.getpid()}")) as output:
        if output.work.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("they are one")
        workspace = Workspace(output.work)
        layers = three_levels(workspace, tmp_path)
        assert (layers[2].path / "disk0.qcow2").stat().st_nlink == 1
        workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], None)
        assert reads(workspace.tops[0], [16, 32, 48, 0])


@contextlib.contextmanager
def only_one_name(path: Path) -> Iterator[None]:
    """The kernel gives this file no second name (EPERM), as file systems without hard links do (chattr(1))."""
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root and a file system with attributes")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def test_where_files_have_but_one_name_a_layer_is_a_copy(tmp_path: Path, workspace: Workspace) -> None:
    begin(workspace)
    write(workspace.tops[0], 16, 0)
    with only_one_name(workspace.tops[0]):
        layers = [seal(workspace, tmp_path / "a", "layer-a")]
    write(workspace.tops[0], 32, 1)
    assert reads(workspace.tops[0], [16, 32])
    layers.append(seal(workspace, tmp_path / "b", "layer-b"))
    assert not (layers[0].path / "disk0.qcow2").is_symlink()
    workspace.restore(layers, ["layer-a", "layer-b"], None)
    assert reads(workspace.tops[0], [16, 32])


def test_more_disks_than_ten_stay_in_the_machines_order(tmp_path: Path, workspace: Workspace) -> None:
    layers = three_levels(workspace, tmp_path, count=11)
    assert [path.name for path in disks(layers[0].path)] == [f"disk{number}.qcow2" for number in range(11)]
    workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], None)
    assert len(workspace.tops) == 11
    assert all(reads(top, [16 + number, 32 + number, 48 + number]) for number, top in enumerate(workspace.tops))


def test_uefi_variables_go_along(tmp_path: Path, workspace: Workspace) -> None:
    layers = []
    begin(workspace)
    for name, content in (("a", b"first"), ("b", b"second")):
        workspace.nvram.write_bytes(content)
        layers.append(seal(workspace, tmp_path / name, f"layer-{name}"))
    workspace.restore(layers[:1], ["layer-a"], None)
    assert workspace.nvram.read_bytes() == b"first" and stat.S_IMODE(workspace.nvram.stat().st_mode) == 0o600
    workspace.nvram.write_bytes(b"the guest's own")
    assert (layers[0].path / NVRAM).read_bytes() == b"first"
    workspace.restore(layers, ["layer-a", "layer-b"], None)
    assert workspace.nvram.read_bytes() == b"second"


SOURCES = ["my image.qcow2", "a,b=c.qcow2", "nbd:host:10809.qcow2", "json:{}.qcow2", "\N{SNOWMAN}.qcow2", "-q", "'\"$x"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_an_image_of_any_name_lies_below_and_stays_as_it_is(
    tmp_path: Path, workspace: Workspace, name: str, format: str
) -> None:
    (tmp_path / "their: files, here").mkdir()
    source = filled(tmp_path / "source", size=4 * MIB, format=format).rename(tmp_path / "their: files, here" / name)
    write(source.absolute(), 5, 3, format)
    source.chmod(0o444)
    before, looks = source.read_bytes(), source.stat()
    layers = three_levels(workspace, tmp_path, source=source)
    workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], source)
    assert reads(workspace.overlays()[0], [16, 32, 48, 5])
    workspace.clear()
    assert source.read_bytes() == before
    assert (source.stat().st_mode, source.stat().st_mtime) == (looks.st_mode, looks.st_mtime)


def test_the_image_below_may_lie_elsewhere_at_the_next_build(tmp_path: Path, workspace: Workspace) -> None:
    source = filled(tmp_path / "source.qcow2", size=4 * MIB)
    write(source, 5, 3)
    layers = three_levels(workspace, tmp_path, source=source)
    workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], source.rename(tmp_path / "moved"))
    assert reads(workspace.tops[0], [16, 32, 48, 5])


def test_overlays_are_made_anew_when_some_are_left(tmp_path: Path, workspace: Workspace) -> None:
    layers = three_levels(workspace, tmp_path)
    workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], None)
    write(workspace.overlays()[0], 9, 0)
    assert reads(workspace.overlays()[0], [16, 32, 48, 0])


def test_a_copy_keeps_its_holes_and_a_failed_one_is_told(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
    copy(tmp_path / "sparse", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == 64 * MIB and (tmp_path / "copy").stat().st_blocks < 2048
    with pytest.raises(CommandError):
        copy(tmp_path / "nothing", tmp_path / "other")


# -- finished files, and back

CONFIG = MachineConfig("packer-tiny")


def options(**keys: Any) -> QemuOptions:
    given = {"iso_url": "x.iso", "iso_checksum": "none", "ssh_username": "root", "vm_name": "web", **keys}
    return QemuOptions.model_validate(given)


def exported(workspace: Workspace, output: Output, config: MachineConfig = CONFIG, **keys: Any) -> export.Image:
    return export.write(config, workspace, options(**keys), context(), output, quiet())


@pytest.mark.parametrize("format", ["qcow2", "raw"])
@pytest.mark.parametrize("skip", [False, True], ids=["compact", "as-it-is"])
def test_an_image_goes_into_a_layer_and_out_of_it_under_another_name(
    tmp_path: Path, workspace: Workspace, format: str, skip: bool
) -> None:
    three_levels(workspace, tmp_path, count=3)
    workspace.nvram.write_bytes(b"variables")
    uefi = replace(CONFIG, firmware=Firmware(tmp_path / "code", tmp_path / "vars"), accelerator="tcg")
    layer = tmp_path / "layer"
    layer.mkdir()
    with Output(tmp_path / "first") as output:
        made = exported(workspace, output, uefi, format=format, skip_compaction=skip)
        assert names(output.work) == [NVRAM, "web", "web-1", "web-2"]
        assert all(reads(one.path, [16 + n, 32 + n, 48 + n]) for n, one in enumerate(made.disks))
        export.keep(made, layer)
        assert names(layer) == [NVRAM, "image.json", "image0", "image1", "image2"]
        with Output(tmp_path / "second") as other:
            again = export.restore(layer, options(format=format, vm_name="db"), context(), other)
            assert names(other.work) == ["db", "db-1", "db-2", NVRAM]
            assert again.machine == made.machine == Machine("tcg", "x86_64", "uefi", NVRAM)
            for one, two in zip(made.disks, again.disks, strict=True):
                assert two.path.read_bytes() == one.path.read_bytes()
                assert (two.format, two.virtual_size) == (one.format, one.virtual_size) == (format, 4 * MIB)
                assert disk.info(two.path).backing is None
            published = other.publish(context(), again.disks, quiet(), again.machine)
    assert [path.name for path in published.files] == ["db", "db-1", "db-2", NVRAM]


def test_uefi_variables_stay_behind_when_they_are_not_wanted(tmp_path: Path, workspace: Workspace) -> None:
    begin(workspace)
    workspace.nvram.write_bytes(b"variables")
    uefi = replace(CONFIG, firmware=Firmware(tmp_path / "code", tmp_path / "vars"))
    with Output(tmp_path / "output") as output:
        assert exported(workspace, output, uefi, efi_drop_efivars=True).machine.nvram == ""
        assert names(output.work) == ["web"]


def test_an_image_that_stays_an_overlay_stands_on_what_was_given(tmp_path: Path, workspace: Workspace) -> None:
    source = filled(tmp_path / "a, source: image.qcow2", size=4 * MIB)
    write(source, 5, 3)
    layers = three_levels(workspace, tmp_path, source=source)
    workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], source)
    keys: dict[str, Any] = {"disk_image": True, "use_backing_file": True, "disk_compression": False}
    with Output(tmp_path / "output") as output:
        made = exported(workspace, output, **keys)
        workspace.clear()
        shown = disk.info(made.disks[0].path, follow=True)
        assert shown.backing == source and reads(made.disks[0].path, [16, 32, 48, 5])


def test_a_whole_disk_is_moved_and_a_layers_is_not(tmp_path: Path, workspace: Workspace) -> None:
    begin(workspace)
    write(workspace.tops[0], 3, 0)
    inode = workspace.tops[0].stat().st_ino
    with Output(tmp_path / "output") as output:
        assert exported(workspace, output, skip_compaction=True).disks[0].path.stat().st_ino == inode
    workspace.clear()
    layers = three_levels(workspace, tmp_path)[:1]
    before = (layers[0].path / "disk0.qcow2").read_bytes()
    workspace.restore(layers, ["layer-a"], None)
    with Output(tmp_path / "output") as output:
        made = exported(workspace, output, skip_compaction=True)
        assert made.disks[0].path.is_file() and not made.disks[0].path.is_symlink()
        assert reads(made.disks[0].path, [16, 0])
    assert (layers[0].path / "disk0.qcow2").read_bytes() == before


@pytest.mark.parametrize(
    "facts",
    ["", "[]", '{"disks": []}', '{"machine": {"colour": "red"}, "disks": []}',
     '{"machine": {}, "disks": [{"format": "raw"}]}'],
    ids=["empty", "list", "half", "unknown-machine", "half-a-disk"],
)  # fmt: skip
def test_a_layer_that_holds_no_image_is_told(tmp_path: Path, facts: str) -> None:
    (tmp_path / "image.json").write_text(facts)
    with Output(tmp_path / "output") as output, pytest.raises(StoreError, match="holds no image"):
        export.restore(tmp_path, options(), context(), output)


def test_disks_that_are_handed_over_stand_on_no_layer(tmp_path: Path, workspace: Workspace) -> None:
    layers = three_levels(workspace, tmp_path)
    workspace.restore(layers, ["layer-a", "layer-b", "layer-c"], None)
    workspace.tops = workspace.overlays()
    workspace.own()
    for layer in layers:
        shutil.rmtree(layer.path)
    assert not [path for path in workspace.directory.iterdir() if path.is_symlink()]
    assert disk.info(workspace.tops[0], follow=True).virtual_size
    subprocess.run(["qemu-img", "check", "-q", workspace.tops[0]], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", workspace.tops[0], tmp_path / "flat"], check=True)


def test_a_disk_that_is_handed_over_is_no_layers_any_more(tmp_path: Path, workspace: Workspace) -> None:
    begin(workspace)
    layer = seal(workspace, tmp_path / "a", "layer-a")
    workspace.tops = workspace.sealed
    workspace.own()
    assert workspace.tops[0].stat().st_ino != (layer.path / "disk0.qcow2").stat().st_ino
