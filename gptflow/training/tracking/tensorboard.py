"""TensorBoard's event files, without TensorFlow."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptflow.errors import MissingDependency
from gptflow.training.runs import RunRecord
from gptflow.training.tracking.tracker import described, results

FLUSH_S = 5.0
"""Seconds after which what was written is put on the disk."""


class TensorBoard:
    """Writes event files into a run's folder: `tensorboard --logdir <data_dir>/runs` shows them.

    Each sitting has a file of its own, since a kill may leave half a record at the end of one. They
    are one run to TensorBoard, and it forgets the steps that a later sitting made again.

    Records are written at once, and not by tensorboardX's own thread, which a full disk would end
    and the training then wait for.

    Args:
        folder: of the run.

    Raises:
        MissingDependency: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter
        except ImportError:
            raise MissingDependency(
                "Training writes event files for TensorBoard, which needs tensorboardX.",
                hint="Type `pip install 'gptflow[train]'`.",
            ) from None
        self._event, self._summary = event_pb2, summary_pb2
        self._open: Any = RecordWriter
        self._folder = folder
        self._writer: Any = None
        self._flushed = 0.0
        self._stem, self._sitting, self._step = "", 1, 0

    def begin(self, record: RunRecord) -> None:
        # TensorBoard reads the files of a folder in the order of their names.
        self._stem = f"events.out.tfevents.{record.created.timestamp():.0f}"
        self._sitting = 1 + len(list(self._folder.glob(f"{self._stem}.*")))
        self._writer = self._open(str(self._folder / f"{self._stem}.{self._sitting:04}"))
        self._write(file_version="brain.Event:2")
        if self._sitting == 1:
            lines = [f"    {name}: {value}" for name, value in described(record).items()]
            self._text("settings", "\n".join(lines))

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        if self._step == 0 and self._sitting > 1:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(step=step, session_log=start)
        self._step = step
        self._scalars(figures)
        evaluated = any(name.startswith("dev/") for name in figures)
        if evaluated or time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()

    def end(self, record: RunRecord, files: Mapping[str, Path]) -> None:
        self._step = self._step or record.steps
        if record.state == "done" and record.metrics:
            self._scalars(results(record))
        for name, path in files.items():
            self._picture(name.removesuffix(".png"), path.read_bytes())
        self._flush()
        self._writer.close()

    def _scalars(self, figures: Mapping[str, float]) -> None:
        values = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in figures.items()
        ]
        self._write(summary=self._summary.Summary(value=values))

    def _picture(self, tag: str, png: bytes) -> None:
        width, height = struct.unpack(">II", png[16:24])
        image = self._summary.Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=png
        )
        value = self._summary.Summary.Value(tag=tag, image=image)
        self._write(summary=self._summary.Summary(value=[value]))

    def _text(self, tag: str, markdown: str) -> None:
        from tensorboardX.summary import text

        self._write(summary=text(tag, markdown))

    def _write(self, step: int | None = None, **fields: Any) -> None:
        at = self._step if step is None else step
        event = self._event.Event(wall_time=time.time(), step=at, **fields)
        with self._closed_on_failure():
            self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        with self._closed_on_failure():
            self._writer.flush()
        self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self._writer.close()
            raise
