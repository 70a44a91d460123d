"""The model store: pull a model once, find it offline ever after.

store = ModelStore(settings.cache_dir, settings.offline)
model = store.ensure(settings.model)
"""

from gptflow.models.catalogue import CATALOGUE, Catalogue, Entry
from gptflow.models.licence import Licence
from gptflow.models.model import Model, SourceKind
from gptflow.models.source import Fetched, Progress, Source, SourceUnavailable
from gptflow.models.store import ModelStore

__all__ = [
    "CATALOGUE",
    "Catalogue",
    "Entry",
    "Fetched",
    "Licence",
    "Model",
    "ModelStore",
    "Progress",
    "Source",
    "SourceKind",
    "SourceUnavailable",
]
