"""Adoption: files an operator put into the registry's folder by hand become versions.

A PEFT checkpoint dropped as `<task>/<number>/` gets a task.json; one dropped as `<task>/` moves to the next number.
Putting it under a running server is how the operator says that it is for that server's backbone. A version copied from
another task or registry keeps the backbone it was made for.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import PurePosixPath

from app.errors import CorruptPrompt, InvalidInput, NotFound
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, encode_labels
from app.registry.formats.binding import bind_rows, norm_warnings
from app.registry.formats.foreign_file import require_possible_size, why_missing
from app.registry.formats.manifest import MANIFEST_FILE, Manifest, TensorFile
from app.registry.formats.peft_checkpoint import CONFIG_FILE, TENSOR_FILE, PeftConfig, read_rows
from app.registry.formats.safetensors_file import INITIAL_FILE
from app.registry.publication import CARD_FILE, Publication
from app.registry.store import Entry, Store
from app.registry.task_record import OWN_FOLDER, TaskRecord, require_no_link, version_key

SETTLE_S = 1.0
"""Foreign files carry no checksum, so a finished copy is told from one in progress by how long it has not changed."""
_logger = logging.getLogger(__name__)


class Adopter:
    """To be used under the store's lock.

    Args:
        backbone: what checkpoints without a task.json are bound to; None leaves them alone.
        settle_s: how long a foreign file must have been left unchanged.
    """

    def __init__(self, store: Store, backbone: Backbone | None, *, settle_s: float = SETTLE_S) -> None:
        self._store = store
        self._backbone = backbone
        self._settle_s = settle_s
        self._refused: dict[tuple[str, int], tuple[Hashable, str]] = {}

    def adopt(self, record: TaskRecord) -> dict[int, str | None]:
        """Make versions of the folders the record calls faulty.

        Returns: number to the reason why not; None for a version that was made: read the task again.
        """
        return {number: self._try(record, number) for number in record.faults}

    def _try(self, record: TaskRecord, number: int) -> str | None:
        place, signature = (record.task, number), record.signatures[number]
        if place in self._refused and self._refused[place][0] == signature:
            return self._refused[place][1]
        try:
            self._adopt(record, number)
        except (InvalidInput, CorruptPrompt, NotFound, OSError) as error:
            self._refused[place] = (signature, str(error))
            return str(error)
        self._refused.pop(place, None)
        return None

    def _adopt(self, record: TaskRecord, number: int) -> None:
        key = version_key(record.task, number)
        files = {name: entry for name, entry in self._store.entries(key).items() if not entry.is_folder}
        require_no_link(files)
        if MANIFEST_FILE in files:
            manifest = self._copied_manifest(record, number, key)
        else:
            manifest = self._foreign_manifest(record, number, key, files)
        if number == OWN_FOLDER:
            self._move_in(record.task, manifest, files)
        else:
            self._store.replace(f"{key}/{MANIFEST_FILE}", manifest.encode())
        _logger.info("adopted the files dropped as %s: version %s@%d", key, manifest.task, manifest.number)

    def _copied_manifest(self, record: TaskRecord, number: int, key: str) -> Manifest:
        """Of a version that was published elsewhere.

        Raises:
            CorruptPrompt: incomplete, faulty at its own place, or of this task and moved to another number.
            InvalidInput: its labels cannot be told apart.
        """
        manifest = Manifest.decode(self._store.read(f"{key}/{MANIFEST_FILE}"))
        if manifest.task == record.task and number != OWN_FOLDER:
            raise CorruptPrompt(record.faults[number])
        for name, stored in manifest.tensor_files.items():
            if TensorFile.of(self._store.read(f"{key}/{name}")).sha256 != stored.sha256:
                raise CorruptPrompt(f"{name} is damaged or not complete")
        if self._backbone is not None and manifest.backbone.fingerprint == self._backbone.fingerprint:
            template = BARE if manifest.template is None else Template(manifest.template)
            encode_labels(self._backbone, template, manifest.labels)
        copied_from = {"copied_from": f"{manifest.task}@{manifest.number}"}
        place = {"task": record.task, "number": number or record.last_number + 1}
        return manifest.model_copy(update={**place, "provenance": manifest.provenance | copied_from})

    def _foreign_manifest(self, record: TaskRecord, number: int, key: str, files: Mapping[str, Entry]) -> Manifest:
        """One for a PEFT checkpoint of another program. Raises InvalidInput: not complete, or not for this backbone."""
        if self._backbone is None:
            raise InvalidInput("it has no task.json; a server with a backbone makes one")
        if 0 < number <= record.table.last_number:
            raise InvalidInput(f"the number was given before; take one above {record.table.last_number}")
        for name in (CONFIG_FILE, TENSOR_FILE):
            if name not in files:
                raise InvalidInput(why_missing(name, files))
        if min(entry.age_s for entry in files.values()) < self._settle_s:
            raise InvalidInput("its files are still changing")
        require_possible_size(files[TENSOR_FILE].num_bytes, self._backbone)
        config = PeftConfig.decode(self._store.read(f"{key}/{CONFIG_FILE}"))
        config.require_backbone(self._backbone)
        self._require_not_another(record, config)
        content = self._store.read(f"{key}/{TENSOR_FILE}")
        prompt = bind_rows(read_rows(config, content), config.kind, self._backbone)
        for warning in norm_warnings(prompt, self._backbone):
            _logger.warning("%s: %s", key, warning)
        publication = Publication(prompt, provenance=config.provenance)
        next_number = number or record.last_number + 1
        return publication.manifest(record.task, next_number, self._backbone, {TENSOR_FILE: content})

    def _require_not_another(self, record: TaskRecord, config: PeftConfig) -> None:
        """Of two servers on one folder the first to look takes a checkpoint, unless it says whose it is.

        Raises InvalidInput: it names another backbone that the task has versions for.
        """
        assert self._backbone is not None
        said = PurePosixPath(str(config.base_model_name_or_path)).name
        others = {each.backbone_name for each in record.versions.values()} - {self._backbone.name}
        if said in others:
            raise InvalidInput(f"its {CONFIG_FILE} says that it is for {said}, not for {self._backbone.name}")

    def _move_in(self, task: str, manifest: Manifest, files: Mapping[str, Entry]) -> None:
        """From the task's own folder to a version's. The tensor leaves last: a crash leaves it findable."""
        names = [name for name in (CONFIG_FILE, CARD_FILE, INITIAL_FILE, TENSOR_FILE) if name in files]
        contents = {name: self._store.read(f"{task}/{name}") for name in names}
        self._store.create(version_key(task, manifest.number), {**contents, MANIFEST_FILE: manifest.encode()})
        for name in [name for name in (MANIFEST_FILE, *names) if name in files]:
            self._store.remove(f"{task}/{name}")
