"""The registry: finds plugins, loads each one on its own, and knows their tasks."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from gptflow import hookspecs
from gptflow.errors import (
    DuplicateTask,
    GPTFlowError,
    PluginError,
    PluginLoadError,
    PluginNotFound,
    ScheduleError,
    TaskNotFound,
    raised_at,
)
from gptflow.schedule import Schedule
from gptflow.suggestion import did_you_mean
from gptflow.task import Task

if TYPE_CHECKING:
    import click

    from gptflow.heads import Head

logger = logging.getLogger(__name__)

GROUP = "gptflow"
BUILT_IN = "text"
AnyTask = Task[Any, Any, Any]
K = TypeVar("K")
V = TypeVar("V")
SourceReader = Callable[[str], Iterable[Mapping[str, Any]]]

_SCHEDULE_OPTIONS = frozenset(
    field.name for field in dataclasses.fields(Schedule) if field.init
) - {"name", "task", "input", "plugin"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One entry point of the group `gptflow`: what it is, what it offers, why it failed."""

    name: str
    module: str
    distribution: str | None = None
    version: str | None = None
    tasks: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    error: GPTFlowError | None = None


class Registry:
    """The loaded plugins and all that they registered.

    A plugin that fails to import or to register is taken out whole and its error is kept in
    `plugins`; the others are not affected. `require_all` makes that fatal, for workers.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, PluginInfo] = {}
        self.tasks: dict[str, AnyTask] = {}
        self.schedules: dict[str, Schedule] = {}
        self.metrics: dict[str, Callable[..., float]] = {}
        self.sources: dict[str, SourceReader] = {}
        self.heads: dict[type[Head], str] = {}
        self.owners: dict[str, str] = {}

    @classmethod
    def load(cls, only: Iterable[str] | None = None) -> Registry:
        """Load the installed plugins, or those of them that `only` names.

        Raises:
            PluginNotFound: `only` names a plugin that is not installed.
        """
        registry = cls()
        entry_points: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for entry_point in importlib.metadata.entry_points(group=GROUP):
            same_name = entry_points.setdefault(entry_point.name, [])
            # A distribution that is on the path twice has the same module both times.
            if entry_point.value not in [other.value for other in same_name]:
                same_name.append(entry_point)
        names = sorted(entry_points) if only is None else list(dict.fromkeys(only))
        # The built-in tasks come first: whoever takes one of their names is the one in the wrong.
        names.sort(key=lambda name: name != BUILT_IN)
        for name in names:
            if name not in entry_points:
                raise PluginNotFound(
                    f"No plugin {name!r} is installed.",
                    hint=did_you_mean(name, entry_points)
                    or f"Installed are {', '.join(sorted(entry_points))}.",
                )
            registry._load_entry_point(*entry_points[name])
        return registry

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin that is not an entry point: a module, or an object with hooks.

        Raises:
            PluginError: it broke its contract; nothing of it stays.
        """
        if self._manager.has_plugin(name) or self._manager.is_registered(plugin):
            raise PluginError(f"Plugin {name!r} is registered already.")
        staged = _Staged(self, name)
        try:
            self._check_hooks(plugin, name)
            self._manager.register(plugin, name)
            staged.collect(self._hooks_of(name))
        except Exception as error:
            self._manager.unregister(name=name)
            if isinstance(error, PluginError):
                raise
            raise _load_error(name, _module_name(plugin), error) from error
        staged.commit()
        hooks = tuple(sorted(call.name for call in self._manager.get_hookcallers(plugin) or ()))
        info = self.plugins.get(name) or PluginInfo(name=name, module=_module_name(plugin))
        self.plugins[name] = dataclasses.replace(info, tasks=tuple(staged.tasks), hooks=hooks)

    def task(self, name: str) -> AnyTask:
        """The task of this name.

        Raises:
            TaskNotFound: with the nearest name, or with why its plugin failed to load.
        """
        if (task := self.tasks.get(name)) is not None:
            return task
        broken = [info.name for info in self.plugins.values() if info.error]
        # A plugin names its tasks after itself: the nearest name of another would mislead.
        hint = None if name.partition(".")[0] in broken else did_you_mean(name, self.tasks)
        if hint is None and broken:
            hint = f"Plugins that failed to load: {', '.join(broken)}; see `gptflow plugins list`."
        raise TaskNotFound(
            f"There is no task {name!r}.",
            hint=hint or "`gptflow plugins list` shows the tasks.",
        )

    def check_schedule(self, schedule: Schedule) -> None:
        """Check what can only be known once all plugins are loaded.

        Raises:
            ScheduleError: no plugin offers its task, or its input does not fit the task.
        """
        try:
            self.task(schedule.task).parse(schedule.input)
        except GPTFlowError as error:
            raise ScheduleError(
                f"Schedule {schedule.name!r}: {error.message}", hint=error.hint
            ) from None

    def require_all(self) -> None:
        """Raise the first load error, if there is one. Workers call this before they start."""
        for info in self.plugins.values():
            if info.error is not None:
                raise info.error

    def add_commands(self, cli: click.Group) -> None:
        """Let plugins add commands. One that raises is logged and left out."""
        self.observe("register_commands", cli=cli)

    @property
    def observes_jobs(self) -> bool:
        """Whether any plugin wants to know how jobs end."""
        hooks = self._manager.hook
        return bool(hooks.on_job_finished.get_hookimpls() or hooks.on_job_failed.get_hookimpls())

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call an observer hook on every plugin; one that raises never stops the rest."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            given = {name: arguments[name] for name in implementation.argnames}
            try:
                implementation.function(**given)
            except Exception as error:
                # By its type and place only: the message may quote a job's text.
                plugin, kind = implementation.plugin_name, type(error).__name__
                where = raised_at(error, implementation.function.__module__)
                logger.error("Plugin %s: %s raised %s (%s).", plugin, hook, kind, where)
                logger.debug("Plugin %s: %s", plugin, hook, exc_info=error)

    def _load_entry_point(
        self,
        entry_point: importlib.metadata.EntryPoint,
        *others: importlib.metadata.EntryPoint,
    ) -> None:
        dist = entry_point.dist
        info = PluginInfo(
            name=entry_point.name,
            module=entry_point.value,
            distribution=dist.name if dist else None,
            version=dist.version if dist else None,
        )
        self.plugins[entry_point.name] = info
        if others:
            rivals = ", ".join(each.dist.name if each.dist else each.value for each in others)
            twice = PluginLoadError(
                f"Plugin {entry_point.name!r} comes from more than one distribution: "
                f"{info.distribution}, {rivals}.",
                hint="Uninstall all but one.",
            )
            self.plugins[entry_point.name] = dataclasses.replace(info, error=twice)
            return
        try:
            self.register(entry_point.load(), entry_point.name)
        except PluginError as error:
            self.plugins[entry_point.name] = dataclasses.replace(info, error=error)
        except (Exception, SystemExit) as error:  # noqa: BLE001  importing may raise anything
            self.plugins[entry_point.name] = dataclasses.replace(
                info, error=_load_error(entry_point.name, entry_point.module, error)
            )

    def _check_hooks(self, plugin: object, name: str) -> None:
        for attribute in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                continue
            hook = options["specname"] or attribute
            function = getattr(plugin, attribute)
            code = inspect.unwrap(function).__code__
            location = f"{code.co_filename}:{code.co_firstlineno}"
            if not hasattr(hookspecs, hook):
                known = [each for each in vars(hookspecs) if each.startswith(("register_", "on_"))]
                raise PluginLoadError(
                    f"Plugin {name!r} implements {hook!r}, which is not a hook ({location}).",
                    hint=did_you_mean(hook, known) or f"The hooks are {', '.join(known)}.",
                )
            given = list(inspect.signature(getattr(hookspecs, hook)).parameters)
            for argument in _required_arguments(function):
                if argument not in given:
                    raise PluginLoadError(
                        f"Plugin {name!r}: hook {hook!r} has no argument {argument!r} "
                        f"({location}).",
                        hint=f"It is given {' and '.join(map(repr, given))}.",
                    )

    def _hooks_of(self, name: str) -> pluggy.HookRelay:
        others = [plugin for other, plugin in self._manager.list_name_plugin() if other != name]
        relay = pluggy.HookRelay()
        for hook in vars(self._manager.hook):
            if hook.startswith("register_"):
                setattr(relay, hook, self._manager.subset_hook_caller(hook, others))
        return relay


class _Staged:
    """What one plugin registers, held back until all of it is found to be good."""

    def __init__(self, registry: Registry, plugin: str) -> None:
        self._registry = registry
        self._plugin = plugin
        self.tasks: dict[str, AnyTask] = {}
        self._schedules: dict[str, Schedule] = {}
        self._metrics: dict[str, Callable[..., float]] = {}
        self._sources: dict[str, SourceReader] = {}
        self._heads: dict[type[Head], str] = {}

    def collect(self, hooks: pluggy.HookRelay) -> None:
        hooks.register_tasks(register=self._add_task)
        hooks.register_schedules(register=self._add_schedule)
        known = self._registry
        hooks.register_metrics(register=self._adder("metric", self._metrics, known.metrics))
        hooks.register_sources(register=self._adder("source", self._sources, known.sources))
        hooks.register_heads(register=self._adder("head", self._heads, known.heads))

    def commit(self) -> None:
        registry = self._registry
        registry.tasks |= self.tasks
        registry.schedules |= self._schedules
        registry.metrics |= self._metrics
        registry.sources |= self._sources
        registry.heads |= self._heads
        registry.owners |= dict.fromkeys(self.tasks, self._plugin)

    def _adder(
        self, kind: str, mine: dict[K, V], everybodys: Mapping[K, V]
    ) -> Callable[[K, V], None]:
        def add(name: K, value: V) -> None:
            if name in mine or name in everybodys:
                raise PluginLoadError(
                    f"Plugin {self._plugin!r} registers a {kind} {name!r}, and that name is taken."
                )
            mine[name] = value

        return add

    def _add_task(self, task: AnyTask) -> None:
        if not isinstance(task, Task):
            given = task.__name__ if isinstance(task, type) else type(task).__name__
            hint = f"Write `register({given}())`." if isinstance(task, type) else None
            caller = traceback.extract_stack(limit=2)[0]
            raise PluginLoadError(
                f"Plugin {self._plugin!r} registered {given!r}, which is not a Task instance "
                f"({caller.filename}:{caller.lineno}).",
                hint=hint,
            )
        task.check()
        if (taken := self._registry.tasks.get(task.name) or self.tasks.get(task.name)) is not None:
            owner = self._registry.owners.get(task.name, self._plugin)
            raise DuplicateTask(
                f"Task {task.name!r} of plugin {self._plugin!r} ({task.location}) has the name of "
                f"one of plugin {owner!r} ({taken.location}).",
                hint="Rename one of them, or uninstall one of the plugins.",
            )
        self.tasks[task.name] = task

    def _add_schedule(self, name: str, *, task: str, input: Any, **options: Any) -> None:
        qualified = f"{self._plugin}.{name}"
        if qualified in self._schedules:
            raise ScheduleError(f"Schedule {qualified!r} is registered twice.")
        unknown = options.keys() - _SCHEDULE_OPTIONS
        for option in sorted(unknown):
            known = ", ".join(sorted(_SCHEDULE_OPTIONS))
            raise ScheduleError(
                f"Schedule {qualified!r} has an option {option!r}, which is unknown.",
                hint=did_you_mean(option, _SCHEDULE_OPTIONS) or f"The options are {known}.",
            )
        self._schedules[qualified] = Schedule(
            name=qualified, task=task, input=input, plugin=self._plugin, **options
        )


@functools.cache
def default_registry() -> Registry:
    """The installed plugins, loaded once per process."""
    return Registry.load()


def _required_arguments(function: Callable[..., Any]) -> list[str]:
    """The arguments that a hook's implementation asks for; those with a default are its own."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]


def _module_name(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__module__


def _load_error(plugin: str, module: str, error: BaseException) -> PluginLoadError:
    return PluginLoadError(
        f"Plugin {plugin!r} failed to load: {type(error).__name__}: {error} "
        f"({raised_at(error, module)})."
    )
