"""Settings: defaults, then `gptflow.toml`, then `GPTFLOW_*` variables, then flags.

Where none of them names a Redis and `gptflow up` is running, its server is used.
`gptflow config show` prints each value with where it came from.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    Field,
    PositiveFloat,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gptflow import validation
from gptflow.errors import ConfigError
from gptflow.suggestion import did_you_mean

FILE_NAME = "gptflow.toml"
ENV_PREFIX = "GPTFLOW_"
UP_FILE = "up.json"
"""In `data_dir` while `gptflow up` runs: `{"url": ..., "pid": ...}`."""
RUNNING = "gptflow up"
"""The source of a Redis URL that stands in that file."""
DEFAULT_MODEL = "smollm2-135m-instruct"
_OTHER_VARIABLES = frozenset(
    {"monitors", "peers", "caller_password", "worker_password", "operator_password"}
)
"""Read elsewhere: by the monitors, the benchmarks and `compose.yaml`."""
_LIST_HINT = "`gptflow config show` lists the settings."


class Settings(BaseSettings):
    """Everything that can be set. Unknown names in the file are errors, not ignored."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey: redis://, rediss://, unix:// or memory://"
    )
    app: str = Field("gptflow", pattern=r"^[a-z0-9_-]{1,64}$", description="prefix of every key")
    model: str = Field(DEFAULT_MODEL, description="name in the model store, or a folder")
    cache_dir: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("gptflow"),
        description="where models are kept",
    )
    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("gptflow"),
        description="where the embedded server and the monitors keep their data",
    )
    adapters: Path | None = Field(
        None, description="where adapters are kept, for workers to follow; in data_dir by default"
    )
    engine: Literal["torch", "openai"] = Field(
        "torch", description="what runs the model: this process, or a server (see openai_url)"
    )
    openai_url: str | None = Field(
        None, description="of an OpenAI-compatible server: vLLM, SGLang, llama.cpp"
    )
    openai_model: str | None = Field(
        None, description="as that server calls it; its only one by default"
    )
    openai_api_key: SecretStr | None = Field(None, description="of that server")
    openai_tokenizer: Path | None = Field(
        None, description="folder with the model's tokenizer.json; else that server tokenises"
    )
    openai_context: int | None = Field(
        None, ge=64, description="most tokens of one sequence, where that server does not tell"
    )
    openai_pooling: Literal["mean", "last"] | None = Field(
        None, description="how that server pools embeddings"
    )
    openai_timeout: float = Field(
        600, gt=0, description="seconds without a byte before an answer is given up"
    )
    openai_parallel: int = Field(256, ge=1, le=4096, description="HTTP requests in flight")
    openai_wait: float = Field(60, ge=0, description="seconds to wait for that server to come up")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "float32", "bfloat16", "int16", "int8"] = Field(
        "auto", description="of the weights; auto takes the fastest that answers like float32"
    )
    threads: int | None = Field(None, ge=1, description="of the CPU engine; all cores by default")
    slots: int = Field(64, ge=1, le=4096, description="sequences that decode at the same time")
    slot_tokens: int = Field(2048, ge=64, description="most tokens of one sequence")
    kv_bytes: int | None = Field(
        None, ge=1, description="most memory for keys and values; by default what fits"
    )
    adapter_bytes: int = Field(
        512 << 20, ge=0, description="most memory for adapters; idle ones give way to others"
    )
    prefix_bytes: int = Field(
        256 << 20, ge=0, description="most memory for beginnings that prompts share"
    )
    concurrency: int = Field(256, ge=1, le=4096, description="messages in flight in one worker")
    in_flight: int | None = Field(
        None, ge=1, description="jobs and rows in flight in one worker; four times the slots"
    )
    lease: float = Field(
        15, ge=0.3, description="seconds of silence after which a worker's jobs go to others"
    )
    grace: float = Field(30, ge=0, description="seconds to finish what runs when told to stop")
    watchdog: float = Field(
        30, gt=0, description="seconds without a step, with work waiting, that end the worker"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="of /metrics, /livez and /readyz; 0 for any free port"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address that they listen on")
    otel: bool = Field(False, description="workers send OpenTelemetry spans of the jobs")
    max_attempts: int = Field(3, ge=1, description="runs of a job whose errors may pass")
    plugins: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="load only these, separated by commas; all by default"
    )
    strict: bool = Field(False, description="a plugin that fails to load is fatal in the CLI too")
    limit_interactive: int = Field(
        10_000, ge=0, description="most interactive jobs that may wait; 0 for no limit"
    )
    limit_standard: int = Field(100_000, ge=0, description="most standard jobs that may wait")
    limit_batch: int = Field(5_000_000, ge=0, description="most rows of batches that may wait")
    limit_tenant: int = Field(0, ge=0, description="most of one class that a tenant may have wait")
    tenant_weights: Annotated[dict[str, PositiveFloat], NoDecode] = Field(
        {}, description="shares of tenants, as JSON: a tenant of weight 2 is served twice as much"
    )
    memory_limit: int = Field(
        80,
        ge=0,
        le=100,
        description="percent of the server's maxmemory that refuses jobs",
    )
    result_ttl: int = Field(86_400, ge=60, description="seconds that a result is kept")
    dead_ttl: int = Field(7 * 86_400, ge=60, description="seconds that a dead job is kept")
    max_payload: int = Field(8 << 20, ge=1024, description="bytes of one job's input at most")
    inline_payload: int = Field(
        64 << 10, ge=0, description="bytes above which it goes by reference"
    )
    signing_key: SecretStr | None = Field(
        None, min_length=16, description="secret that signs jobs; workers then refuse others"
    )
    signing_key_previous: SecretStr | None = Field(
        None, min_length=16, description="secret that workers still accept while keys change"
    )
    allow_chains: bool = Field(
        False, description="go on with what an unsigned job says comes after it"
    )
    celery_tasks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="other Celery tasks that workers may run, separated by commas"
    )
    tls_ca: Path | None = Field(
        None, description="of rediss://: certificates that vouch for the server; else the system's"
    )
    tls_certificate: Path | None = Field(None, description="of rediss://: the client's own")
    tls_key: Path | None = Field(None, description="of rediss://: the key of that certificate")
    tls_check_hostname: bool = Field(
        True, description="of rediss://: the server's certificate must name its host"
    )
    train_data: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="folders that a training worker reads data from, separated by commas"
    )
    offline: bool = Field(False, description="never ask the network for a model")
    accept_licences: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="licences of models that you agree to, separated by commas: gemma"
    )

    track: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="where trainings are shown beside TensorBoard: mlflow, wandb"
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator(
        "plugins", "accept_licences", "celery_tasks", "track", "train_data", mode="before"
    )
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        names = tuple(name for part in value.split(",") if (name := part.strip()))
        return names or (None if info.field_name == "plugins" else ())

    @field_validator("tenant_weights", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('give JSON: {"a-tenant": 2}') from None

    @field_validator(
        "cache_dir",
        "data_dir",
        "adapters",
        "openai_tokenizer",
        "tls_ca",
        "tls_certificate",
        "tls_key",
    )
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()

    @field_validator("train_data")
    @classmethod
    def _expand_all(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser() for path in paths)

    @field_validator("signing_key", "signing_key_previous", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        # As compose hands on a variable that nobody set.
        return value or None

    @field_validator("openai_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give http://HOST:PORT or https://HOST")
        if parts.username or parts.password or parts.query:
            # Addresses end up in logs.
            raise ValueError("the address may hold no secrets; use openai_api_key")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` reads file, variables and flags itself, to know where each value came from.
        return (init_settings,)

    @property
    def sources(self) -> dict[str, str]:
        """Where each value came from: `default`, a file's path, a variable, or `flag`."""
        return {name: self._sources.get(name, "default") for name in type(self).model_fields}

    @property
    def adapters_dir(self) -> Path:
        """Where adapters are kept."""
        return self.adapters or self.data_dir / "adapters"

    @property
    def training(self) -> Settings:
        """The same for the queue of trainings: an application of its own on the same server."""
        return self.model_copy(update={"app": f"{self.app}-train"})

    @property
    def broker_url(self) -> str | None:
        """The Redis URL in the clear, for connecting; never print it."""
        return self.redis_url.get_secret_value() if self.redis_url else None


def load(path: Path | None = None, **flags: Any) -> Settings:
    """Read the settings.

    Args:
        path: a settings file, which must exist; by default `gptflow.toml` in the working
            directory, if there is one.
        flags: values that beat every other source; None means not given.

    Raises:
        ConfigError: the file is missing or malformed, or a value does not fit.
    """
    file, origin = _read_file(path)
    given = {name: value for name, value in flags.items() if value is not None}
    environment = EnvSettingsSource(Settings)()
    values = file | environment | given
    sources = (
        dict.fromkeys(file, str(origin))
        | {name: ENV_PREFIX + name.upper() for name in environment}
        | dict.fromkeys(given, "flag")
    )
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise _explain(error, values, sources) from None
    if settings.redis_url is None and (url := _running_server(settings.data_dir)):
        settings = settings.model_copy(update={"redis_url": SecretStr(url)})
        sources["redis_url"] = RUNNING
    settings._sources.update(sources)
    return settings


def unknown_variables() -> list[ConfigError]:
    """What is wrong with the `GPTFLOW_*` variables that set nothing, such as misspelt ones."""
    known = {*Settings.model_fields, *_OTHER_VARIABLES}
    return [
        ConfigError(
            f"The variable {variable} is no setting and is ignored.",
            hint=did_you_mean(name, known) or _LIST_HINT,
        )
        for variable in sorted(os.environ)
        if variable.startswith(ENV_PREFIX)
        and (name := variable.removeprefix(ENV_PREFIX).lower()) not in known
    ]


def _running_server(data_dir: Path) -> str | None:
    """The URL of the server that `gptflow up` started, while it runs."""
    try:
        record = json.loads((data_dir / UP_FILE).read_text(encoding="utf-8"))
        os.kill(record["pid"], 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(record["url"])


def _read_file(path: Path | None) -> tuple[dict[str, Any], Path | None]:
    if path is None:
        path = Path(FILE_NAME)
        if not path.is_file():
            return {}, None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path
    except OSError as error:
        raise ConfigError(
            f"Settings file {path} cannot be read: {error.strerror}.",
            hint="Check the path given with --config.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"Settings file {path} is not TOML: {error}.") from None


def _explain(
    error: ValidationError, values: Mapping[str, Any], sources: Mapping[str, str]
) -> ConfigError:
    problem = validation.find_problems(error, values)[0]
    hint = _LIST_HINT
    if problem.kind == validation.UNKNOWN:
        hint = did_you_mean(problem.field, Settings.model_fields) or hint
        return ConfigError(f"There is no setting {problem.field!r}.", hint=hint)
    if not problem.path:
        return ConfigError(f"The settings contradict each other: {problem.message}.", hint=hint)
    source = sources.get(str(problem.path[0]), "default")
    return ConfigError(f"Setting {problem.field!r} ({source}) {problem.complaint}.", hint=hint)
