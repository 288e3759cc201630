"""Data sources: samples from lists, tables and data sets, with errors that name the place."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from textgym.episode import Sample
from textgym.errors import DataError
from textgym.hashing import hashed_id, hashed_share
from textgym.task import Task

__all__ = ["SPLITS", "BuiltinTask", "DataTask", "Layout", "builtin_split_of", "divided", "load_samples", "split_of"]

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)
WARM_START = "warm_start"
WARM_START_SHARE = 0.25  # of the built-in train split
TABLE_TYPES = (".csv", ".tsv")
FILE_TYPES = (".jsonl", ".json", *TABLE_TYPES, ".parquet")
FIELDS = ("prompt", "references", "id", "split")
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}

Row = Mapping[str, Any]
Source = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]
Columns = Mapping[str, str] | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Layout:
    """How the rows of a public data set become samples.

    Args:
        dataset: Its name on the hub.
        config: The configuration of it, where it has several.
        columns: Which column is which, see :func:`load_samples`.
        rows: First makes rows of each row, for what no mapping of columns can say: none, one or several, which
            ``columns`` then reads. It may raise KeyError where a column is missing, and ValueError where a value is
            unusable.
        header: The columns of a CSV or TSV file that has no line of their names.
    """

    dataset: str
    config: str | None = None
    columns: Columns | None = None
    rows: Callable[[Row], Iterable[Row]] | None = None
    header: Sequence[str] | None = None


def split_of(key: str) -> str:
    """The split of a sample whose data name none, by a hash of its id: 80% train, 10% validation, 10% test."""
    position = hashed_share(key)
    for name, share in zip(SPLITS, SHARES, strict=True):
        position -= share
        if position < 0:
            return name
    return SPLITS[-1]


def builtin_split_of(key: str) -> str:
    """The split of a built-in sample: of those that :func:`split_of` puts into train, a quarter is the warm start's.

    A model is sure of the prompts whose replies it has imitated, and what it is sure of it does not explore.
    """
    split = split_of(key)
    is_imitated = split == "train" and hashed_share(f"{WARM_START}\n{key}") < WARM_START_SHARE
    return WARM_START if is_imitated else split


def divided(
    samples: Iterable[Sample], key: Callable[[Sample], str] = lambda sample: sample.id
) -> dict[str, list[Sample]]:
    """Built-in samples by split, see :func:`builtin_split_of`; those with the same key stay together."""
    splits: dict[str, list[Sample]] = {split: [] for split in (WARM_START, *SPLITS)}
    for sample in samples:
        splits[builtin_split_of(key(sample))].append(sample)
    return splits


def load_samples(source: Source, columns: Columns | Layout | None = None) -> dict[str, list[Sample]]:
    """The samples of a data source by split, each split in the source's order.

    Args:
        source: A path of a JSONL, JSON, CSV, TSV or Parquet file; the name of a data set, loaded by the ``datasets``
            library; any iterable of samples or of rows (mappings by column); or a mapping from splits to any of these.
        columns: Which column is which: ``{"prompt": "question", "references": "answer"}``; also ``"id"`` and
            ``"split"``, and other keys for ``Sample.meta``. A value with braces is a template over columns:
            ``{"prompt": "What is the capital of {Country}?"}``. A field that is not named here is in the column of its
            own name, if there is one; columns that no field uses become ``meta``. A list of such mappings makes several
            samples of a row, one a mapping, except where one of the cells that it names is empty. Or the layout of a
            public data set.

    A row whose references are empty has none; any other field that is named must be there and not empty. TSV files have
    no quoting. Rows without an id get a hash of their prompt. Rows without a split, in a source without splits, are
    divided by a hash of the id (:func:`split_of`); copies of a prompt without ids stay together.

    Raises:
        DataError: The source is missing, empty or malformed; the message names file, line and column.
    """
    if isinstance(columns, str):
        raise DataError(f"columns={columns!r}: the task knows no layouts; say {{'prompt': ..., 'references': ...}}.")
    if isinstance(source, (str, os.PathLike)) and not _is_file(source):
        source = _from_hub(os.fspath(source), columns.config if isinstance(columns, Layout) else None)
    if isinstance(source, Mapping):
        return {SPLIT_NAMES.get(name, name): _samples(part, columns, name) for name, part in source.items()}
    by_split: dict[str, list[Sample]] = {}
    for item in _items(source, columns):
        by_split.setdefault(item.split or split_of(item.key), []).append(item.sample)
    if not by_split:
        raise DataError(f"{_name(source)} has no rows.")
    return by_split


class DataTask(Task):
    """A task of one turn about the samples of a data source.

    Its split ``"all"`` is every sample.

    Args:
        data: The source, see :func:`load_samples`.
        columns: Which column is which, see :func:`load_samples`.
        stop: Strings that end the agent's turn.

    Raises:
        DataError: The source is missing, empty or malformed.
    """

    def __init__(self, data: Source, columns: Columns | Layout | None = None, stop: Sequence[str] = ()) -> None:
        self.stop = stop
        self._name = _name(data)
        self._samples = load_samples(data, columns)

    def samples(self, split: str) -> Sequence[Sample]:
        """The samples of a split.

        Raises:
            DataError: There are none.
        """
        if split == "all":
            return [sample for samples in self._samples.values() for sample in samples]
        samples = self._samples.get(split, [])
        if not samples:
            sizes = ", ".join(f"{name}: {len(part)}" for name, part in self._samples.items())
            raise DataError(
                f"{self._name} has no samples in the split {split!r} ({sizes}). Name another one with split=..., take "
                "everything with split='all', give more data, or name the splits yourself: with a column, "
                "columns={'split': ...}, or with data={'train': ..., 'test': ...}."
            )
        return samples


class BuiltinTask(DataTask):
    """A task with samples of its own, in whose place others may be given; subclass it and give :meth:`builtin`.

    Args:
        data: A source, see :func:`load_samples`, or the name of one of the task's layouts, for that data set from the
            hub; the built-in samples where None. A column ``demonstration`` is what a warm start imitates in place of
            the first reference, see :meth:`demonstration`.
        columns: Which column is which, see :func:`load_samples`, or the name of the layout that a file has.

    Attributes:
        layouts: Those of the public data sets of its kind, by name.
        max_new_tokens_with_data: The budget with data of one's own; None: that of the built-in samples.
        has_own_samples: Whether it is about the built-in samples.

    Raises:
        DataError: The source is missing, empty or malformed, or there is no layout of that name.
    """

    layouts: Mapping[str, Layout] = MappingProxyType({})
    max_new_tokens_with_data: int | None = None

    def __init__(self, data: Source | None = None, columns: Columns | str | None = None) -> None:
        self.has_own_samples = data is None
        if not self.has_own_samples and self.max_new_tokens_with_data is not None:
            self.max_new_tokens = self.max_new_tokens_with_data
        if data is None:
            if columns is not None:
                raise DataError(f"columns={columns!r} without data: they say how to read data=...")
            data = self.builtin()
            if not isinstance(data, Mapping):
                data = divided(data)
        layout: Columns | Layout | None = self._layout(columns) if isinstance(columns, str) else columns
        if isinstance(data, str) and data in self.layouts:
            layout = self.layouts[data]
            data = layout.dataset
        super().__init__(data, layout, self.stop)

    @classmethod
    def builtin(cls) -> Sequence[Sample] | Mapping[str, Sequence[Sample]]:
        """The samples, always the same: by split, or all of them, for :func:`builtin_split_of` to divide."""
        raise NotImplementedError(f"{cls.__name__} has no samples of its own; give it data=...")

    def demonstration(self, sample: Sample) -> list[str] | None:
        """``meta["demonstration"]``, else the first reference; after the blank that begins a reply."""
        reply = sample.meta.get("demonstration", next(iter(sample.references), None))
        return None if reply is None else [f" {reply}"]

    def lesson(self, sample: Sample) -> list[str] | None:
        """The first reference, after the blank that begins a reply."""
        return [f" {sample.references[0]}"] if sample.references else None

    def warm_start_samples(self) -> Sequence[Sample]:
        """Those of the split ``"warm_start"``, which the built-in samples have, else of the train split."""
        return self.samples(WARM_START if WARM_START in self._samples else "train")

    def _layout(self, name: str) -> Layout:
        if name not in self.layouts:
            known = ", ".join(map(repr, self.layouts)) or "none"
            raise DataError(f"{type(self).__name__} knows no layout {name!r}; there are {known}, or columns={{...}}.")
        return self.layouts[name]


class _Item(NamedTuple):
    sample: Sample
    split: str | None
    key: str  # what decides on the split


def _samples(source: Source, columns: Columns | Layout | None, split: str) -> list[Sample]:
    samples = [item.sample for item in _items(source, columns)]
    if not samples:
        raise DataError(f"the split {split!r} of the data has no rows.")
    return samples


def _items(source: Source, columns: Columns | Layout | None) -> Iterator[_Item]:
    seen: dict[str, str] = {}
    for place, item in _read_items(source, columns):
        if item.sample.id in seen:
            raise DataError(
                f"{place}: the id {item.sample.id!r} is also that of {seen[item.sample.id]}; ids are unique. "
                "Name another column as the id, or none."
            )
        seen[item.sample.id] = place
        yield item


def _read_items(source: Source, columns: Columns | Layout | None) -> Iterator[tuple[str, _Item]]:
    copies: Counter[str] = Counter()
    rows = _rows(source, columns.header if isinstance(columns, Layout) else None)
    if isinstance(columns, Layout):
        rows, columns = _laid_out(rows, columns), columns.columns
    if columns is None or isinstance(columns, Mapping):
        for place, row in rows:
            yield place, _item(row, columns or {}, place, copies)
        return
    for place, row in rows:
        for number, mapping in enumerate(columns):
            if not _has_empty_cells(row, mapping):
                item = _item(row, mapping, place, copies)
                identity = f"{item.sample.id}/{number}" if "id" in {*mapping, *row} else item.sample.id
                yield place, item._replace(sample=replace(item.sample, id=identity))


def _laid_out(rows: Iterator[tuple[str, Any]], layout: Layout) -> Iterator[tuple[str, Any]]:
    for place, row in rows:
        try:
            parts = [row] if layout.rows is None else list(layout.rows(row))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{place}: this is no row of {layout.dataset}: {what}.") from error
        for part in parts:
            yield place, part


def _has_empty_cells(row: Any, columns: Mapping[str, str]) -> bool:
    named = [name for column in columns.values() for name in re.findall(r"\{([^{}]*)\}", column) or [column]]
    return isinstance(row, Mapping) and any(name in row and row[name] is None for name in named)


def _item(row: Any, columns: Mapping[str, str], place: str, copies: Counter[str]) -> _Item:
    if isinstance(row, Sample):
        return _Item(row, None, row.id)
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: a row is a textgym.Sample or a mapping from columns to values, not {row!r}.")
    reader = _RowReader(row, columns, place)
    prompt = reader.prompt()
    identity = reader.get("id")
    if identity is None:
        key = hashed_id(json.dumps(prompt))
        copies[key] += 1
        identity = key if copies[key] == 1 else f"{key}-{copies[key]}"
    else:
        key = identity = str(identity)
    split, references, meta = reader.get("split"), reader.references(), reader.meta()
    try:
        sample = Sample(identity, prompt, references, meta)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    return _Item(sample, None if split is None else SPLIT_NAMES.get(str(split), str(split)), key)


class _RowReader:
    """One row, read through the mapping of its columns."""

    def __init__(self, row: Row, columns: Mapping[str, str], place: str) -> None:
        self.row, self.columns, self.place = row, columns, place

    def get(self, field: str) -> Any:
        """The field's value; None where nothing names a column for it and no column has its name.

        Raises:
            DataError: It is named, and the row has no such column.
        """
        column = self.columns.get(field)
        if column is None:
            return self.row.get(field)
        if "{" in column:
            return re.sub(r"\{([^{}]*)\}", lambda match: str(self._column(match[1], field)), column)
        return self._column(column, field)

    def prompt(self) -> Any:
        prompt = self.get("prompt")
        if prompt is None and "prompt" not in self.columns:
            raise DataError(
                f"{self.place}: no column 'prompt'; the columns are {list(self.row)}. Say which one it is: "
                "columns={'prompt': ...}."
            )
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise DataError(f"{self.place}, {self._where('prompt')}: the prompt is empty.")
        return prompt if isinstance(prompt, (list, tuple)) else str(prompt)

    def references(self) -> tuple[str, ...]:
        column = self.columns.get("references", "references")
        if column in self.row and self.row[column] in (None, ""):
            return ()
        value = self.get("references")
        if value is None:
            return ()
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(v, (Mapping, list, tuple)) or v is None for v in values):
            raise DataError(f"{self.place}, {self._where('references')}: {value!r} is no text or list of texts.")
        return tuple(map(str, values))

    def meta(self) -> dict[str, Any]:
        used = {self.columns.get(field, field) for field in FIELDS}
        rest = {column: value for column, value in self.row.items() if column not in used}
        return rest | {key: self.get(key) for key in self.columns if key not in FIELDS}

    def _column(self, column: str, field: str) -> Any:
        if self.row.get(column) is None:
            state = "is empty" if column in self.row else f"is missing; the columns are {list(self.row)}"
            raise DataError(f"{self.place}, column {column!r} ({field}): it {state}.")
        return self.row[column]

    def _where(self, field: str) -> str:
        return f"column {self.columns.get(field, field)!r}"


def _rows(source: Source, header: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of a file or an iterable, each with the name of its place; ``header`` is for a table without one."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise DataError(f"there is no data file {str(path)!r} (looked in {Path.cwd()}).")
        suffix = path.suffix.lower()
        try:
            yield from _read_table(path, header) if suffix in TABLE_TYPES else READERS[suffix](path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: {error}.") from error
        return
    if not isinstance(source, Iterable):
        raise DataError(
            f"data={source!r} ({type(source).__name__}) is neither a file, a data set's name nor an iterable."
        )
    for number, row in enumerate(source):
        yield f"row {number}", row


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    yield place, _checked_row(json.loads(line), place)
                except json.JSONDecodeError as error:
                    raise DataError(f"{place}, column {error.colno}: this is no JSON: {error.msg}.") from error


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: this is no JSON: {error.msg}.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: it holds a {type(rows).__name__}; a JSON data file is a list of objects.")
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", _checked_row(row, f"{path}, row {number}")


def _read_table(path: Path, header: Sequence[str] | None) -> Iterator[tuple[str, Row]]:
    is_csv = path.suffix.lower() == ".csv"
    dialect: dict[str, Any] = {} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, **dialect)
        try:
            header = header or next(reader, None)
            for values in reader:
                place = f"{path}, line {reader.line_num}"
                if header is None or not values:
                    continue
                if len(values) != len(header):
                    raise DataError(f"{place}: {len(values)} values for {len(header)} columns {list(header)}.")
                yield place, {column: value or None for column, value in zip(header, values, strict=True)}
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'textgym[datasets]'.") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}


def _checked_row(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place}: it holds {row!r}; a row is a JSON object, by column.")
    return row


def _is_file(source: str | os.PathLike[str]) -> bool:
    return Path(source).suffix.lower() in FILE_TYPES


def _from_hub(name: str, config: str | None = None) -> Any:
    """A data set by name, or one saved in a folder."""
    if Path(name).is_file():
        raise DataError(f"{name!r} is no data file; their names end in {', '.join(FILE_TYPES)}.")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name!r} is taken for the name of a data set, which needs the datasets library: pip install "
            f"'textgym[datasets]'. The names of data files end in {', '.join(FILE_TYPES)}."
        ) from error
    try:
        saved = any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # datasets, huggingface_hub and their HTTP client have no common base
        raise DataError(f"no data set could be loaded as {name!r}: {type(error).__name__}: {error}") from error


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else "the data"
