"""The description of a machine that travels with its disks (OVF 1.1, DSP0243), as VMware and VirtualBox read it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree

_OVF = "http://schemas.dmtf.org/ovf/envelope/1"
_RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
_VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
_VMDK = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_LINUX_64 = "101"  # CIM_OperatingSystem.OsType
_CPU, _MEMORY, _IDE, _SCSI, _NETWORK, _DISK, _SATA = 3, 4, 5, 6, 10, 17, 20  # CIM resource types
_CONTROLLER_ID = 3


class Controller(StrEnum):
    """What disks are attached to."""

    SATA = "sata"
    SCSI = "scsi"
    IDE = "ide"


_CONTROLLERS = {Controller.SATA: (_SATA, "AHCI"), Controller.SCSI: (_SCSI, "lsilogic"), Controller.IDE: (_IDE, "PIIX4")}


@dataclass(frozen=True)
class Machine:
    """The machine to describe."""

    name: str
    cpus: int
    memory_mib: int
    controller: Controller = Controller.SATA


@dataclass(frozen=True)
class Image:
    """A streamOptimized VMDK beside the description; sizes in bytes."""

    name: str
    size: int
    virtual_size: int


def descriptor(machine: Machine, images: Sequence[Image]) -> str:
    """The .ovf file."""
    for prefix, uri in (("ovf", _OVF), ("rasd", _RASD), ("vssd", _VSSD)):
        ElementTree.register_namespace(prefix, uri)
    envelope = ElementTree.Element(_q("Envelope"))
    references = _add(envelope, "References")
    for number, image in enumerate(images, 1):
        _add(references, "File", id=f"file{number}", href=image.name, size=str(image.size))
    disks = _section(envelope, "DiskSection", "Virtual disks")
    for number, image in enumerate(images, 1):
        _add(
            disks, "Disk", diskId=f"disk{number}", fileRef=f"file{number}", capacity=str(image.virtual_size),
            capacityAllocationUnits="byte", format=_VMDK,
        )  # fmt: skip
    networks = _section(envelope, "NetworkSection", "Networks")
    _add(_add(networks, "Network", name="NAT"), "Description").text = "The network of the machine"
    _system(envelope, machine, len(images))
    ElementTree.indent(envelope)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(envelope, encoding="unicode") + "\n"


def manifest(name: str, content: bytes, images: Mapping[str, str]) -> str:
    """The .mf file: SHA-256 of the description and of the disks (name -> digest)."""
    sums = {name: hashlib.sha256(content).hexdigest(), **images}
    return "".join(f"SHA256({file})= {digest}\n" for file, digest in sums.items())


def _system(envelope: ElementTree.Element, machine: Machine, disks: int) -> None:
    system = _add(envelope, "VirtualSystem", id=machine.name)
    _add(system, "Info").text = "A virtual machine"
    _add(system, "Name").text = machine.name
    kind = _section(system, "OperatingSystemSection", "The guest's operating system")
    kind.set(_q("id"), _LINUX_64)
    _add(kind, "Description").text = "Linux, 64 bits"
    hardware = _section(system, "VirtualHardwareSection", "Virtual hardware")
    about = _add(hardware, "System")
    for key, value in (
        ("ElementName", "Virtual Hardware Family"), ("InstanceID", "0"),
        ("VirtualSystemIdentifier", machine.name), ("VirtualSystemType", "vmx-10"),
    ):  # fmt: skip
        ElementTree.SubElement(about, f"{{{_VSSD}}}{key}").text = value
    for item in _items(machine, disks):
        element = _add(hardware, "Item")
        for name, content in sorted(item.items()):  # the schema wants them in alphabetical order
            ElementTree.SubElement(element, f"{{{_RASD}}}{name}").text = str(content)


def _items(machine: Machine, disks: int) -> Iterator[dict[str, object]]:
    yield {
        "ResourceType": _CPU, "InstanceID": 1, "ElementName": f"{machine.cpus} virtual CPU(s)",
        "AllocationUnits": "hertz * 10^6", "VirtualQuantity": machine.cpus,
    }  # fmt: skip
    yield {
        "ResourceType": _MEMORY, "InstanceID": 2, "ElementName": f"{machine.memory_mib} MiB of memory",
        "AllocationUnits": "byte * 2^20", "VirtualQuantity": machine.memory_mib,
    }  # fmt: skip
    sort, model = _CONTROLLERS[machine.controller]
    yield {
        "ResourceType": sort, "InstanceID": _CONTROLLER_ID, "ElementName": f"{machine.controller} controller",
        "Address": 0, "ResourceSubType": model,
    }  # fmt: skip
    yield {
        "ResourceType": _NETWORK, "InstanceID": 4, "ElementName": "Network adapter", "AutomaticAllocation": "true",
        "Connection": "NAT", "ResourceSubType": "E1000",
    }  # fmt: skip
    for number in range(1, disks + 1):
        yield {
            "ResourceType": _DISK, "InstanceID": 10 + number, "ElementName": f"Disk {number}",
            "AddressOnParent": number - 1, "HostResource": f"ovf:/disk/disk{number}", "Parent": _CONTROLLER_ID,
        }  # fmt: skip


def _section(parent: ElementTree.Element, name: str, info: str) -> ElementTree.Element:
    section = _add(parent, name)
    _add(section, "Info").text = info
    return section


def _add(parent: ElementTree.Element, tag: str, /, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, _q(tag), {_q(key): value for key, value in attributes.items()})


def _q(name: str) -> str:
    return f"{{{_OVF}}}{name}"
