"""What the paths do: a recommender behind a queue, and its changes behind another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import Header
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from metarec.functional.fusion import NotFiniteError
from metarec.recommender import Recommender
from metarec.service import requests as schema
from metarec.service.answering import Answer, Job, answers
from metarec.service.batching import Batcher
from metarec.service.changes import Changes
from metarec.service.connections import Connections
from metarec.service.guard import Metrics
from metarec.service.handover import Handover
from metarec.service.journal import Change, Journal
from metarec.service.limits import Limits
from metarec.service.reader import Reader, check_key, check_size
from metarec.service.watching import Watch

_LOG = logging.getLogger("metarec.service")
_LOOK = 0.5  # seconds between two looks at the learner's file
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="A name for the request: sent again under it, it is made only once."),
]


class Service:
    """A recommender behind a queue, and its changes behind another.

    Args:
        recommender: what answers. The service alone may change it while it runs.
        limits: on requests.
        max_batch: users adapted together.
        version: of the software, for ``/health``.
        journal: of the changes; see :func:`create_app`.
        learned: the file of a learner; see there.
    """

    def __init__(
        self,
        recommender: Recommender,
        limits: Limits,
        *,
        max_batch: int,
        version: str,
        journal: Journal | None = None,
        learned: Path | None = None,
    ) -> None:
        self.limits, self.version = limits, version
        self.changes = Changes(recommender, journal)
        self.handover = None if learned is None else Handover(self.changes, learned)
        self.metrics, self.connections = Metrics(), Connections(limits)
        self.watch = Watch(self.metrics.registry)
        self.batcher: Batcher[Job, Answer] = Batcher(
            self._answers,
            max_batch=max_batch,
            waiting=limits.waiting,
            observe=self.metrics.batch.observe,
        )
        self.writer: Batcher[Change, str] = Batcher(
            lambda changes: self.changes.commit(changes, self.batcher.wait), waiting=limits.waiting
        )
        self._following: asyncio.Task[None] | None = None
        self._read()

    @property
    def recommender(self) -> Recommender:
        """What answers, with all changes so far."""
        return self.changes.recommender

    def _answers(self, jobs: Sequence[Job]) -> Sequence[Answer | Exception]:
        found = answers(self.recommender, jobs)
        if found and isinstance(found[0], Answer):
            self.watch.shown(self.recommender, found[0].items)
        if self.handover is None or not (version := self.handover.version):
            return found
        return [one if isinstance(one, Exception) else replace(one, version=version) for one in found]

    def _read(self) -> None:
        """Take notice of the catalogue."""
        self._catalog = self.recommender.catalog
        self.reader = Reader(self._catalog, self.limits)
        self.metrics.items.set(len(self._catalog.items))

    def _prepare(self) -> None:
        """Compute what is computed once: tables, and what a user without clicks is shown."""
        self.recommender.adapt([])

    @asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        """From the first request to the last: computes what is computed once, and answers all that waits at the end."""
        async with self.batcher, self.writer:
            await self.batcher.call(self._prepare)
            watching = asyncio.create_task(self._watch())
            yield
            watching.cancel()
        if self.changes.journal is not None:
            self.changes.journal.close()

    async def _watch(self) -> None:
        """Serve what the learner has learned, as soon as it is there."""
        while self.handover is not None:
            try:
                if self.handover.newer() and (found := await asyncio.to_thread(self.handover.read)):
                    take = partial(self.handover.take, *found)
                    await self.writer.call(partial(self.batcher.wait, take))  # between commits, and between batches
                    await self._notice()
            except Exception:
                _LOG.exception("the learner's weights could not be taken over")
            await asyncio.sleep(_LOOK)

    async def current(self) -> None:
        """Make the changes that other processes have acknowledged by now."""
        if self.changes.behind() and self._following is None:
            self._following = asyncio.create_task(self._follow())
        if self._following is not None:
            await asyncio.shield(self._following)

    async def _follow(self) -> None:
        try:
            await self.batcher.call(self.changes.follow)
            await self._notice()
        finally:
            self._following = None

    async def _notice(self) -> None:
        """Make ready for a catalogue that has changed."""
        if self.recommender.catalog is not self._catalog:
            await self.batcher.call(self._prepare)
            self._read()

    async def recommend(self, request: schema.RecommendRequest) -> Response:
        """Recommend to someone from their clicks."""
        async with asyncio.timeout(self.limits.seconds):
            await self.current()
            reader = self.reader
            job, columns = reader.job(request), reader.attributes.shown(request.attributes)
            [answer] = await self._answered([job], [""])
        return Response(schema.content(answer, columns), headers=self._told(answer), media_type="application/json")

    async def recommend_users(self, request: schema.RecommendUsersRequest) -> Response:
        """Recommend to several users at once."""
        async with asyncio.timeout(self.limits.seconds):
            await self.current()
            reader, parts = self.reader, []
            jobs, columns = reader.jobs(request), reader.attributes.shown(request.attributes)
            where = [f"users.{i}: " for i in range(len(jobs))]
            found = await self._answered(jobs, where)
            while len({answer.version for answer in found}) > 1:  # no answer is of two models
                found = await self._answered(jobs, where)
        for answer in found:
            parts.append(schema.content(answer, columns))
            await asyncio.sleep(0)  # other clients' requests go on in between
        own = self._told(found[0]) if found else None
        return Response(b'{"users":[%b]}' % b",".join(parts), headers=own, media_type="application/json")

    def _told(self, answer: Answer) -> dict[str, str] | None:
        """Which weights have answered, as a header."""
        return None if self.handover is None else {"model-version": str(answer.version)}

    async def _answered(self, jobs: Sequence[Job], where: Sequence[str]) -> list[Answer]:
        results, out = await self.batcher.submit(jobs), []
        for place, result in zip(where, results, strict=True):
            if isinstance(result, ValueError) and not isinstance(result, NotFiniteError):
                raise ValueError(f"{place}{result}")
            if isinstance(result, Exception):
                raise result
            out.append(result)
        return out

    async def clicks(self, request: schema.ClicksRequest, key: Key = None) -> Response:
        """Take in new clicks: every count of the model moves on, and the histories of their users."""
        await self.current()
        self.reader.check_clicks(request)
        names = ("user", "item", "time")
        columns: dict[str, list[object]] = {name: [getattr(click, name) for click in request.clicks] for name in names}
        if kinds := self.reader.attributes.catalog.kinds:
            columns["kind"] = [click.kind or kinds[0] for click in request.clicks]
        return await self._changed(Change.of("clicks", columns, key))

    async def add_items(self, request: schema.AddItemsRequest, key: Key = None) -> Response:
        """Take in new items: they can be clicked and are recommended at once."""
        check_size("ids", request.ids, self.limits.ids)
        return await self._changed(Change.of("add", request.model_dump(), key))

    async def remove_items(self, request: schema.ItemsRequest, key: Key = None) -> Response:
        """Recommend items no more; they stay known as clicks."""
        await self.current()
        self.reader.check_ids("ids", request.ids)
        return await self._changed(Change.of("remove", request.model_dump(), key))

    async def restore_items(self, request: schema.ItemsRequest, key: Key = None) -> Response:
        """Recommend removed items again."""
        await self.current()
        self.reader.check_ids("ids", request.ids)
        return await self._changed(Change.of("restore", request.model_dump(), key))

    async def _changed(self, change: Change) -> Response:
        """Make a change between two batches, and answer once it is on the disk."""
        if change.key is not None:
            check_key(change.key)
        async with asyncio.timeout(self.limits.seconds):
            [result] = await self.writer.submit([change])
        if isinstance(result, Exception):
            raise result
        await self._notice()
        return Response(result, media_type="application/json")

    async def health(self) -> JSONResponse:
        """Whether the service answers everyone, and what it serves."""
        await self.current()
        problem = self.connections.problem()
        said = {
            **({"status": "short of connections", "problem": problem} if problem else {"status": "ok"}),
            "items": len(self.recommender.catalog.items),
            "learners": list(self.recommender.learners),
            "waiting": len(self.batcher),
            "version": self.version,
            **({"not_counted": self.changes.not_counted} if self.changes.not_counted else {}),
            **({} if self.handover is None else {"learning": self.handover.told()}),
        }
        return JSONResponse(said, 503 if problem else 200)

    async def show_metrics(self) -> PlainTextResponse:
        """Counts and times in the Prometheus text format."""
        self.metrics.waiting.set(len(self.batcher))
        if self.handover is not None:
            self.watch.look(self.handover)
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)
