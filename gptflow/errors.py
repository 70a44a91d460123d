"""Every error that GPTFlow raises on purpose, as one tree.

Each class has a stable code, an exit code for the command line, and a flag that says whether
trying again can help. A message says what happened and to which object; `hint` is what to type.

    GPTFlowError                    GF000
    ├── ConfigError                 GF100   a setting is missing, unknown or contradicts another
    │   └── MissingDependency       GF101   an optional package is not installed
    ├── PluginError                 GF200   a plugin broke its contract
    │   ├── PluginLoadError         GF201   importing or registering it raised
    │   ├── DuplicateTask           GF202   the task's name is taken
    │   ├── PromptError             GF203   a template is malformed or names an unknown variable
    │   ├── InvalidOutput           GF204   a task returned something other than its output type
    │   ├── PluginNotFound          GF205   no plugin of this name is installed
    │   └── ScheduleError           GF206   a schedule's time, task or options will not do
    ├── TaskNotFound                GF210   no loaded plugin offers this task
    ├── InvalidInput                GF300   the input does not fit the task's input type
    │   ├── EmptyInput              GF301   nothing to work on
    │   ├── InputTooLong            GF302   more tokens than the model's context holds
    │   └── MalformedMessage        GF303   a message that cannot be read as a job
    ├── UntrustedMessage            GF310   a job that is not signed as this worker asks for
    ├── BrokerUnavailable           GF400   Redis cannot be reached
    ├── QueueFull                   GF401   too much waits already; it says when to come back
    ├── JobError                    GF500
    │   ├── JobNotFound             GF501   no such job, or its record has expired
    │   ├── JobFailed               GF502   the job ended in an error that is not one of these
    │   ├── JobCancelled            GF503   somebody cancelled it
    │   ├── JobTimeout              GF504   it did not end in the time given
    │   └── JobDead                 GF505   its worker died each time that it ran
    ├── ModelError                  GF600
    │   ├── ModelNotFound           GF601   neither in the cache nor at any source
    │   ├── ModelCorrupt            GF602   a file's checksum or format is wrong
    │   ├── UnsupportedModel        GF603   an architecture that the engine does not serve
    │   └── LicenceNotAccepted      GF604   the model has terms to agree to before it is pulled
    ├── EngineError                 GF700
    │   ├── UnsupportedHead         GF701   this engine cannot compute this head
    │   ├── InvalidGrammar          GF702   a JSON schema that cannot be enforced
    │   ├── AdapterNotFound         GF703   no such adapter is loaded
    │   ├── EngineStopped           GF704   the engine was closed with the request in flight
    │   ├── StepFailed              GF705   the model failed while it ran the request with others
    │   ├── AdapterCorrupt          GF706   an adapter's file is missing, malformed or altered
    │   ├── AdapterMismatch         GF707   an adapter made for something else: model, task, layers
    │   ├── AdapterMemoryFull       GF708   all resident adapters are in use; no room for one more
    │   ├── ServerUnavailable       GF709   the model server cannot be reached, or is overloaded
    │   ├── SandboxUnavailable      GF710   nothing on this machine can contain generated code
    │   ├── AdapterTooLarge         GF711   an adapter that takes more than all may take together
    │   └── AdapterNotSaved         GF712   an adapter that could not be written, or an alias moved
    ├── TrainingError               GF900   a training run that cannot begin, or cannot go on
    │   ├── LossNotFinite           GF901   the loss is not a number any more
    │   ├── RunNotFound             GF902   no training run of this name
    │   ├── ResumeRefused           GF903   a run that cannot go on from where it was
    │   ├── NotTrainable            GF904   a task, or data for it, that no head can be trained for
    │   ├── GateMissed              GF905   an adapter that is not good enough to be promoted
    │   ├── ReloadDiffers           GF906   what was saved does not answer like what was trained
    │   ├── StudyNotFound           GF910   no search of that name on this machine
    │   ├── TrainingBroken          GF920   the process that trained for a job is gone
    │   └── DataForbidden           GF921   a job names data outside the folders that it may read
    └── DataError                   GF800   data to train or to test with that will not do
        ├── BadRows                 GF801   rows that cannot be used, by file and line
        │   ├── BadEncoding         GF802   lines that are not UTF-8, or not what was said
        │   ├── LineTooLong         GF803   a line longer than any row should be
        │   ├── BadLabel            GF804   a label that is missing, blank or has stray blanks
        │   └── SpanOffToken        GF805   a span that begins or ends inside a token
        ├── EmptyData               GF806   a file without rows
        ├── OneClass                GF807   every row has the same label
        ├── UnseenLabel             GF808   a label of the test rows that no training row has
        ├── UnreadableFile          GF809   not in a format that is read, or damaged
        ├── SplitImpossible         GF810   a split that these rows do not allow
        └── LeakedRows              GF811   test rows that are training rows too
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gptflow.error_info import ErrorInfo as ErrorInfo


class GPTFlowError(Exception):
    """The root: catch it to catch everything that GPTFlow raises on purpose."""

    code: ClassVar[str] = "GF000"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    @property
    def info(self) -> ErrorInfo:
        """The serialisable form."""
        return ErrorInfo(self.code, self.message, self.hint)


class ConfigError(GPTFlowError):
    """A setting is missing, unknown or contradicts another."""

    code, exit_code = "GF100", 10


class MissingDependency(ConfigError):
    """An optional package is not installed."""

    code = "GF101"


class PluginError(GPTFlowError):
    """A plugin broke its contract."""

    code, exit_code = "GF200", 7


class PluginLoadError(PluginError):
    """Importing or registering a plugin raised."""

    code = "GF201"


class DuplicateTask(PluginError):
    """Two plugins register a task of the same name."""

    code = "GF202"


class PromptError(PluginError):
    """A prompt template is malformed or names a variable that nothing provides."""

    code = "GF203"


class InvalidOutput(PluginError):
    """A task returned something other than its declared output type."""

    code = "GF204"


class PluginNotFound(PluginError):
    """No plugin of this name is installed."""

    code, exit_code = "GF205", 4


class ScheduleError(PluginError):
    """A schedule that cannot be: its time, its task, its input or an option."""

    code = "GF206"


class TaskNotFound(GPTFlowError):
    """No loaded plugin offers a task of this name."""

    code, exit_code = "GF210", 4


class InvalidInput(GPTFlowError):
    """The input does not fit the task's input type."""

    code, exit_code = "GF300", 3


class EmptyInput(InvalidInput):
    """The input holds nothing to work on; no model was called."""

    code = "GF301"


class InputTooLong(InvalidInput):
    """The input needs more tokens than the model's context holds."""

    code = "GF302"


class MalformedMessage(InvalidInput):
    """A message in the queue that cannot be read as a job."""

    code = "GF303"


class UntrustedMessage(GPTFlowError):
    """A job whose signature is missing or wrong, or that asks for what only signed ones may."""

    code, exit_code = "GF310", 12


class BrokerUnavailable(GPTFlowError):
    """Redis cannot be reached."""

    code, exit_code, retryable = "GF400", 5, True


class QueueFull(GPTFlowError):
    """Nothing was enqueued, because too much waits already.

    Attributes:
        retry_after: seconds after which it is worth trying again.
    """

    code, exit_code, retryable = "GF401", 11, True

    def __init__(self, message: str, *, retry_after: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class JobError(GPTFlowError):
    """Something about one job."""

    code, exit_code = "GF500", 8


class JobNotFound(JobError):
    """No such job, or its record has expired."""

    code = "GF501"


class JobFailed(JobError):
    """The job ended in an error that is not part of this tree."""

    code = "GF502"


class JobCancelled(JobError):
    """Somebody cancelled the job."""

    code = "GF503"


class JobTimeout(JobError):
    """The job did not end in the time given."""

    code, retryable = "GF504", True


class JobDead(JobError):
    """The worker died each time that it ran the job, so it is not run any more."""

    code = "GF505"


class ModelError(GPTFlowError):
    """Something about a model's files."""

    code, exit_code = "GF600", 6


class ModelNotFound(ModelError):
    """The model is neither in the cache nor at any source that answers."""

    code = "GF601"


class ModelCorrupt(ModelError):
    """A model file's checksum or format is wrong."""

    code = "GF602"


class UnsupportedModel(ModelError):
    """An architecture that the engine does not serve."""

    code = "GF603"


class LicenceNotAccepted(ModelError):
    """The model has terms that its user must agree to before it is pulled."""

    code = "GF604"


class EngineError(GPTFlowError):
    """Something about one request to the engine."""

    code = "GF700"


class UnsupportedHead(EngineError):
    """This engine cannot compute this head."""

    code = "GF701"


class InvalidGrammar(EngineError):
    """A JSON schema that cannot be enforced while decoding."""

    code = "GF702"


class AdapterNotFound(EngineError):
    """No adapter of this name is loaded."""

    code, exit_code = "GF703", 4


class EngineStopped(EngineError):
    """The engine was closed while the request was in flight."""

    code, retryable = "GF704", True


class StepFailed(EngineError):
    """The model failed on a step that the request was part of, maybe through no fault of it."""

    code, retryable = "GF705", True


class AdapterCorrupt(EngineError):
    """A file of an adapter is missing, malformed, or not the one that its manifest names."""

    code = "GF706"


class AdapterMismatch(EngineError):
    """An adapter that was made for another model, task or kind of layer."""

    code = "GF707"


class AdapterMemoryFull(EngineError):
    """The adapter does not fit beside those that requests are using at the moment."""

    code, retryable = "GF708", True


class ServerUnavailable(EngineError):
    """The server that holds the model cannot be reached, or has no room now."""

    code, retryable = "GF709", True


class SandboxUnavailable(EngineError):
    """Nothing on this machine can contain generated code, so none is run."""

    code = "GF710"


class AdapterTooLarge(EngineError):
    """The adapter alone takes more memory than all adapters may take together."""

    code = "GF711"


class AdapterNotSaved(EngineError):
    """An adapter could not be written, or an alias moved; everything is as it was."""

    code = "GF712"


class TrainingError(GPTFlowError):
    """A training run cannot begin, or cannot go on."""

    code, exit_code = "GF900", 13


class LossNotFinite(TrainingError):
    """The loss is not a number any more; the last checkpoint is from before that."""

    code = "GF901"


class RunNotFound(TrainingError):
    """There is no training run of this name."""

    code, exit_code = "GF902", 4


class ResumeRefused(TrainingError):
    """The data, the model or the settings are no longer those that the run began with."""

    code = "GF903"


class NotTrainable(TrainingError):
    """No head can be trained for this task, or not on rows of this kind."""

    code = "GF904"


class GateMissed(TrainingError):
    """An adapter is not good enough to be promoted."""

    code = "GF905"


class ReloadDiffers(TrainingError):
    """What was saved does not answer like what was trained, so it is not kept."""

    code = "GF906"


class StudyNotFound(TrainingError):
    """No search of that name on this machine."""

    code, exit_code = "GF910", 4


class TrainingBroken(TrainingError):
    """The process that trained for a job is gone; the job goes on from the run's checkpoint."""

    code, retryable = "GF920", True


class DataForbidden(TrainingError):
    """A job names data outside the folders that a training worker may read."""

    code = "GF921"


class DataError(GPTFlowError):
    """Something about data to train or to test with."""

    code, exit_code = "GF800", 3


class BadRows(DataError):
    """Rows that cannot be used. The message names the first, by file and line.

    Attributes:
        problems: all of them; none where the error came over the wire.
    """

    code = "GF801"

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Sequence[Any] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class BadEncoding(BadRows):
    """Lines that are not UTF-8, or not the encoding that was stated."""

    code = "GF802"


class LineTooLong(BadRows):
    """A line that is longer than any row should be."""

    code = "GF803"


class BadLabel(BadRows):
    """A label that is missing, blank, or has blanks where it may not."""

    code = "GF804"


class SpanOffToken(BadRows):
    """A span that begins or ends inside a token."""

    code = "GF805"


class EmptyData(DataError):
    """A file without rows."""

    code = "GF806"


class OneClass(DataError):
    """Every row has the same label, so that there is nothing to learn."""

    code = "GF807"


class UnseenLabel(DataError):
    """A label of the test rows that no training row has."""

    code = "GF808"


class UnreadableFile(DataError):
    """A file that is not in a format that is read, or is damaged."""

    code = "GF809"


class SplitImpossible(DataError):
    """A split that these rows do not allow."""

    code = "GF810"


class LeakedRows(DataError):
    """Rows of the test data that are in the training data too."""

    code = "GF811"
