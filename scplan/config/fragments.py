"""Reads the containers and profiles of each file, as fragments. loading.py joins the fragments of a container."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from scplan.config.configuration import RUNTIMES, VERSION
from scplan.config.entries import MAX_LISTED, Entry, Owner, SectionReader
from scplan.config.report import Report, quoted
from scplan.config.yaml_source import Mapping, Mark, Node, Scalar, Sequence
from scplan.kinds.kind import Kinds
from scplan.model.values import ABSOLUTE_PATH, integer
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.model.probe import Probe

TOP_LEVEL = ("version", "runtime", "profiles", "containers", "probes")
MAX_PROBES = 100
MODULES = "modules"
MAX_NAME = 255
MAX_IMAGE = 1024
IDENTITIES = ("id", "name")
MAX_CONTAINERS = 100_000

# PID_MAX_LIMIT of 64-bit kernels, 2**22: include/linux/threads.h, proc_sys_kernel(5).
_PID = integer(1, 4194304)
# modprobe(8) takes - and _ for the same character.
_MODULE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Written(NamedTuple):
    """A value in a file, and its position."""

    value: Any
    mark: Mark | None


class Fragment:
    """A container or profile as one place in the files has it. Sections are read on demand, and once each."""

    def __init__(self, owner: Owner, mark: Mark | None) -> None:
        self.owner = owner
        self.name = owner.name
        self.mark = mark
        self._sections: dict[str, tuple[SectionReader, Node]] = {}
        self._entries: dict[str, dict[str, Entry]] = {}
        self.profiles: list[Written] = []
        self.modules: list[str] = []
        self.runtime: Written | None = None
        self.pid: Written | None = None
        self.pid_file: Written | None = None
        self.identity: Written | None = None
        self.image: Written | None = None
        self.label: Written | None = None
        self.has_wrong_pid = False

    def add_section(self, reader: SectionReader, node: Node) -> None:
        self._sections[reader.kind.name] = reader, node

    @property
    def kinds(self) -> Iterable[str]:
        """Names of the kinds whose sections the fragment has."""
        return self._sections.keys()

    def entries(self, kind: str) -> dict[str, Entry]:
        """Entries of a section of the fragment, by identity. Invalid entries are reported and left out."""
        if kind not in self._entries:
            reader, node = self._sections[kind]
            self._entries[kind] = reader.read(node, self.owner)
        return self._entries[kind]


class FileReader:
    """Reads the top level of files, and collects their fragments, in file order."""

    def __init__(self, kinds: Kinds, report: Report) -> None:
        self.report = report
        self.sections = {kind.section: SectionReader(kind, report) for kind in kinds.values()}
        self.containers: dict[str, list[Fragment]] = {}
        self.profiles: dict[str, Fragment] = {}
        self.runtime: Written | None = None
        self.probes: list[Probe] = []
        self._container_keys: dict[str, Callable[[Fragment, Mark | None, Node], None]] = {
            "runtime": self._read_runtime,
            "profiles": self._read_profiles,
            "pid": self._read_pid,
            "pid_file": self._read_pid_file,
            "identity": self._read_identity,
            "image": self._read_image,
            "label": self._read_label,
            MODULES: self._read_modules,
        }

    def read(self, root: Node) -> None:
        """Read the document of one file, and add its contents. Errors are reported."""
        if not isinstance(root, Mapping):
            hint = 'begin with "version: 1", then "containers:"'
            self.report.error("not a configuration", "the file is not a mapping", hint=hint, mark=root.mark)
            return
        self._check_version(root)
        for key, mark, node in root.items():
            match key:
                case "version":
                    pass
                case "runtime":
                    self._read_default_runtime(mark, node)
                case "profiles":
                    self._read_named(node, "profile", self._add_profile)
                case "containers":
                    self._read_named(node, "container", self._add_container)
                case "probes":
                    self._read_probes(node)
                case _ if not key.startswith("x-"):
                    self.report.unknown("key", f"there is no key {quoted(key)} here", key, TOP_LEVEL, mark)

    def _check_version(self, root: Mapping) -> None:
        node = root.entries.get("version")
        if node is None:
            detail = "the file does not say its version"
            self.report.error("missing version", detail, hint='add "version: 1"', mark=root.mark)
        elif not isinstance(node, Scalar) or node.text != VERSION:
            found = f"version {quoted(node.text)}" if isinstance(node, Scalar) else "this version"
            detail, hint = f"{found} is not one that this scplan reads", 'write "version: 1", or use a newer scplan'
            self.report.error("unknown version", detail, hint=hint, mark=node.mark)

    def _read_default_runtime(self, mark: Mark | None, node: Node) -> None:
        runtime = self._runtime(node)
        if runtime is None:
            return
        if self.runtime is None:
            self.runtime = runtime
        elif self.runtime.value != runtime.value:
            self._contradiction("the default runtime", self.runtime, runtime)

    def _read_probes(self, node: Node) -> None:
        """Add the probes of a file, each a text, or a mapping with a time limit. They run in the order of the files."""
        if isinstance(node, Scalar) and node.is_null:
            return
        if not isinstance(node, Sequence) or len(self.probes) + len(node.items) > MAX_PROBES:
            detail = f'"probes" is a list of at most {MAX_PROBES} commands'
            self.report.error("not a list", detail, hint='write probes: ["ping -c 1 10.0.0.1"]', mark=node.mark)
            return
        for item in node.items:
            try:
                self.probes.append(_probe(item))
            except ValueError as error:
                hint = "write a command as text, or {command: ping -c 1 10.0.0.1, timeout: 5s}"
                self.report.error("invalid probe", str(error), hint=hint, mark=item.mark)

    def _read_named(self, node: Node, what: str, add: Callable[[str, Mark | None, Node], None]) -> None:
        if isinstance(node, Scalar) and node.is_null:
            return
        if not isinstance(node, Mapping):
            hint = f"write each {what} as `name:`, with what it has indented below"
            self.report.error("not a mapping", f'"{what}s" is a mapping of names', hint=hint, mark=node.mark)
            return
        if len(node) > MAX_CONTAINERS:
            self.report.error(f"too many {what}s", f"a configuration has at most {MAX_CONTAINERS}", mark=node.mark)
            return
        for name, mark, body in node.items():
            if name.startswith("x-") or not self._check_name(what, name, mark):
                continue
            add(name, mark, body)

    def _check_name(self, what: str, name: str, mark: Mark | None) -> bool:
        problem = ""
        if not name:
            problem = "it is empty"
        elif len(name) > MAX_NAME or len(name.encode()) > MAX_NAME:
            problem = f"it has more than {MAX_NAME} bytes"
        elif name[0] in "-.":
            problem = f'it begins with "{name[0]}"'
        elif "/" in name or not name.isprintable() or any(letter.isspace() for letter in name):
            problem = "it holds a slash, a space or a control character"
        if problem:
            self.report.error(f"invalid {what} name", f"{quoted(name)}: {problem}", mark=mark)
        return not problem

    def _add_profile(self, name: str, mark: Mark | None, body: Node) -> None:
        fragment = self._fragment("profile", name, mark, body)
        first = self.profiles.setdefault(name, fragment)
        if first is not fragment:
            detail = f"profile {quoted(name)} is already at {at(first.mark)}"
            self.report.error("duplicate profile", detail, hint="rename one of them", mark=mark)

    def _add_container(self, name: str, mark: Mark | None, body: Node) -> None:
        self.containers.setdefault(name, []).append(self._fragment("container", name, mark, body))

    def _fragment(self, what: str, name: str, mark: Mark | None, body: Node) -> Fragment:
        fragment = Fragment(Owner(what, name), mark)
        if isinstance(body, Mapping):
            for key, key_mark, node in body.items():
                self._read_key(fragment, what, key, key_mark, node)
        elif not (isinstance(body, Scalar) and body.is_null):
            hint = f"its keys are {', '.join(self._known(what))}"
            self.report.error("not a mapping", f"{what} {quoted(name)} is a mapping", hint=hint, mark=body.mark)
        return fragment

    def _read_key(self, fragment: Fragment, what: str, key: str, mark: Mark | None, node: Node) -> None:
        section = self.sections.get(key)
        if section is not None:
            fragment.add_section(section, node)
        elif key in self._known(what):
            self._container_keys[key](fragment, mark, node)
        elif key in self._container_keys:
            hint = "write it at the containers that use the profile"
            self.report.error("misplaced key", f"a profile can't have {quoted(key)}", hint=hint, mark=mark)
        elif not key.startswith("x-"):
            detail = f"{what} {quoted(fragment.name)} has no key {quoted(key)}"
            self.report.unknown("key", detail, key, self._known(what), mark)

    def _known(self, what: str) -> list[str]:
        return [*(self._container_keys if what == "container" else (MODULES,)), *self.sections]

    def _read_runtime(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        fragment.runtime = self._runtime(node)

    def _runtime(self, node: Node) -> Written | None:
        """The named runtime; None if it is unset, or after an error was reported."""
        if not isinstance(node, Scalar):
            self.report.error("invalid value", "runtime: one name is expected", mark=node.mark)
        elif not node.is_null:
            if node.text in RUNTIMES:
                return Written(node.text, node.mark)
            detail = f"there is no runtime {quoted(node.text)}"
            self.report.unknown("runtime", detail, node.text, RUNTIMES, node.mark)
        return None

    def _read_profiles(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        seen: set[str] = set()
        for name in self._texts(node, "profiles"):
            if name.value in seen:
                detail = f"container {quoted(fragment.name)} lists profile {quoted(name.value)} before"
                self.report.error("listed twice", detail, hint="remove one of them", mark=name.mark)
            else:
                seen.add(name.value)
                fragment.profiles.append(name)

    def _read_modules(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        for name in self._texts(node, MODULES):
            if _MODULE.fullmatch(name.value):
                fragment.modules.append(name.value)
            else:
                detail = f"{quoted(name.value)} can't be the name of a kernel module"
                hint = "write it as modprobe takes it: letters, digits, _ and -"
                self.report.error("invalid value", detail, hint=hint, mark=name.mark)

    def _texts(self, node: Node, key: str) -> list[Written]:
        """The texts of a list. A single text counts as a list of one."""
        if isinstance(node, Scalar):
            return [] if node.is_null else [Written(node.text, node.mark)]
        if not isinstance(node, Sequence) or len(node.items) > MAX_LISTED:
            detail = f"{quoted(key)} is a list of at most {MAX_LISTED} names"
            self.report.error("not a list", detail, hint=f"write {key}: [one, another]", mark=node.mark)
            return []
        texts = []
        for item in node.items:
            if isinstance(item, Scalar) and not item.is_null:
                texts.append(Written(item.text, item.mark))
            else:
                self.report.error("invalid value", f"{quoted(key)} is a list of names", mark=item.mark)
        return texts

    def _read_pid(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        fragment.pid = self._value(fragment, "pid", node, _PID.parse)

    def _read_pid_file(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        fragment.pid_file = self._value(fragment, "pid_file", node, ABSOLUTE_PATH.parse)

    def _read_identity(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        fragment.identity = self._value(fragment, "identity", node, _identity)

    def _read_image(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        fragment.image = self._value(fragment, "image", node, _image)

    def _read_label(self, fragment: Fragment, mark: Mark | None, node: Node) -> None:
        fragment.label = self._value(fragment, "label", node, _label)

    def _value(self, fragment: Fragment, key: str, node: Node, parse: Callable[[str], Any]) -> Written | None:
        problem = "one value is expected"
        if isinstance(node, Scalar):
            if node.is_null:
                return None
            try:
                return Written(parse(node.text), node.mark)
            except ValueError as error:
                problem = str(error)
        fragment.has_wrong_pid = fragment.has_wrong_pid or key.startswith("pid")
        detail = f"container {quoted(fragment.name)}, {key}: {problem}"
        self.report.error("invalid value", detail, mark=node.mark)
        return None

    def _contradiction(self, what: str, first: Written, second: Written) -> None:
        detail = f"{what} is {quoted(str(second.value))} here and {quoted(str(first.value))} at {at(first.mark)}"
        self.report.error("contradiction", detail, hint="keep one of them", mark=second.mark)

    def agreed(self, key: str, fragments: list[Fragment]) -> Written | None:
        """Value of a key of a container over all files; None if no file sets it. Differing values are reported."""
        first: Written | None = None
        for fragment in fragments:
            written: Written | None = getattr(fragment, key)
            if first is None:
                first = written
            elif written is not None and written.value != first.value:
                self._contradiction(f"{key} of container {quoted(fragment.name)}", first, written)
        return first


def _identity(text: str) -> str:
    if text not in IDENTITIES:
        raise ValueError(f"{text!r} is not one of {', '.join(IDENTITIES)}")
    return text


def _image(text: str) -> str:
    if not 0 < len(text) <= MAX_IMAGE or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is no name of an image")
    return text


def _label(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not key or not equals or len(text) > MAX_IMAGE or not text.isprintable():
        raise ValueError(f"{text!r} is no label: write KEY=VALUE")
    return text


def _probe(node: Node) -> Probe:
    """The probe of a node. Raises ValueError if the node is not a probe."""
    from scplan.model.probe import DEFAULT_TIMEOUT_S, parse_duration, probe

    if isinstance(node, Scalar) and not node.is_null:
        return probe(node.text)
    entries = node.entries if isinstance(node, Mapping) else {}
    command, timeout = entries.get("command"), entries.get("timeout")
    unknown = entries.keys() - {"command", "timeout"}
    if unknown or not isinstance(command, Scalar) or not (timeout is None or isinstance(timeout, Scalar)):
        raise ValueError("a probe has a command, and may have a timeout")
    return probe(command.text, DEFAULT_TIMEOUT_S if timeout is None else parse_duration(timeout.text))


def at(mark: Mark | None) -> str:
    return f"{mark.name}:{mark.line + 1}" if mark else "another place"
