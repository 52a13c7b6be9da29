"""Tests `JobLog` and claims of clients/python against a stream in memory: messages that are not events, a leader that was cut
off, and purges.

The argument is {"library": folder}. Prints the name of each test that has passed, as a JSON string a line.
"""

import asyncio, json, sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

given = json.loads(sys.argv[1])
sys.path.insert(0, given["library"])

from nats.js.errors import BadRequestError, NotFoundError
from tailwater import _log
from tailwater._attempt import Attempt, GiveBack
from tailwater._broker import Broker
from tailwater._log import FENCE, JobLog, Lost


class Stream:
    """The messages of one job, as (data, headers). The server that answers knows the first `known` of them; None: all."""

    def __init__(self):
        self.messages, self.known, self.refused, self.removed, self.holds_job = [], None, 0, 0, True
        # The last stream sequence of the queue. The job has 7.
        self.queue_end = 7

    def at(self, index):
        if not 0 <= index < len(self.messages[: self.known]):
            raise NotFoundError
        data, headers = self.messages[index]
        return SimpleNamespace(seq=self.removed + index + 1, data=data, headers=headers, subject="log")

    async def get_last_msg(self, stream, subject):
        return self.at(len(self.messages[: self.known]) - 1)

    async def get_msg(self, stream, seq, subject=None, next=False):
        return self.at(seq - 1)

    async def publish(self, subject, data, headers):
        last = self.removed + len(self.messages) if self.messages else 0
        if self.known is not None or headers[FENCE] != str(last):
            self.refused += 1
            raise BadRequestError()
        self.messages.append((data, headers))
        return SimpleNamespace(seq=self.removed + len(self.messages))

    async def is_queued(self, job):
        return self.holds_job

    async def stream_info(self, name, subjects_filter):
        assert (name, subjects_filter) == ("TW_JOBS", "tw.jobs.*.j")
        subjects = {"tw.jobs.k.j": 1} if self.holds_job else None
        return SimpleNamespace(state=SimpleNamespace(last_seq=self.queue_end, subjects=subjects))

    def remove_all(self):
        self.removed, self.messages = self.removed + len(self.messages), []

    def broker(self):
        broker = Broker(SimpleNamespace(jetstream=lambda timeout: self, max_payload=1 << 20), "tw", 1)
        broker.of_job, broker.is_queued = lambda job: ("stream", "log"), self.is_queued
        return broker

    def log(self):
        return JobLog(self.broker(), "j")

    def delivery(self, count, age, job="j"):
        submitted = datetime.now(timezone.utc) - timedelta(seconds=age)
        metadata = SimpleNamespace(timestamp=submitted, num_delivered=count, sequence=SimpleNamespace(stream=7))
        worker = SimpleNamespace(kind="k", timeout=None, silence_timeout=None, continues=False, max_attempts=5)
        message = SimpleNamespace(data=json.dumps({"job": job}).encode(), metadata=metadata)
        return Attempt(self.broker(), worker, message, 30, "w", None)

    def put(self, data, fence=None):
        self.messages.append((data, None if fence is None else {FENCE: str(fence)}))


async def write(log):
    assert not await log.open()
    await log.append("job:queued:v1", kind="k", input=None)
    log.attempt = 1
    await log.append("job:started:v1", kind="k", worker="w")
    await log.append("model:chunk:v1", text="a")


JUNK = [b"", b"bare text", b"{}", b"[1]", b"7", b'{"type":"x","job":"j","seq":"4","attempt":1,"ts":1}',
        b'{"type":"x","job":"other","seq":4,"attempt":1,"ts":1}', b'{"type":"x","job":"j","seq":9,"attempt":1,"ts":1}']


async def messages_that_are_not_events_do_not_stop_the_writer():
    stream = Stream()
    log = stream.log()
    await write(log)
    for junk in JUNK:
        stream.put(junk)
        await log.append("model:chunk:v1", text="b")
    assert log.seq == 3 + len(JUNK)
    assert [event["seq"] for event in await log.events()] == list(range(1, log.seq + 1))


async def a_claim_finds_the_last_event_before_such_messages():
    for junk in JUNK:
        for fence in (None, 3):
            stream = Stream()
            await write(stream.log())
            stream.put(junk, fence)
            log = stream.log()
            assert await log.open()
            assert (log.seq, log.attempt, log.stream_seq) == (3, 1, 4), (junk, fence)
    stream = Stream()
    stream.put(b"junk")
    log = stream.log()
    assert not await log.open()
    await log.append("job:queued:v1", kind="k", input=None)
    assert (log.seq, log.stream_seq) == (1, 2)


async def an_expectation_about_another_subject_proves_no_event():
    stream = Stream()
    await write(stream.log())
    forged = b'{"type":"model:chunk:v1","job":"j","seq":3,"attempt":7,"ts":1,"text":"b"}'
    stream.messages.append((forged, {FENCE: "2", f"{FENCE}-Subject": "tw.chunks.0.other"}))
    log = stream.log()
    assert await log.open()
    assert (log.seq, log.attempt, log.stream_seq) == (3, 1, 4)


async def another_owner_is_noticed_behind_such_messages():
    stream = Stream()
    log = stream.log()
    await write(log)
    other = stream.log()
    assert await other.open()
    other.attempt = 2
    stream.put(b"junk")
    await other.append("job:started:v1", kind="k", worker="v")
    stream.put(b"junk")
    try:
        await log.append("model:chunk:v1", text="b")
    except Lost:
        return
    raise AssertionError("it went on")


async def a_leader_that_lacks_events_does_not_end_the_attempt():
    for known in (0, 2):
        stream = Stream()
        log = stream.log()
        await write(log)
        stream.known = known
        appending = asyncio.create_task(log.append("model:chunk:v1", text="b"))
        while stream.refused < 3:
            await asyncio.sleep(0.01)
        assert not appending.done()
        stream.known = None
        await appending
        assert (log.seq, len(stream.messages)) == (4, 4)


async def a_log_that_stays_behind_was_restored():
    _log.OLD_LEADER_WAIT = 0.1
    stream = Stream()
    log = stream.log()
    await write(log)
    del stream.messages[2:]
    try:
        await log.append("model:chunk:v1", text="b")
    except Lost:
        return
    raise AssertionError("it went on")


async def only_the_log_of_a_queued_job_continues_after_all_events_expired():
    _log.OLD_LEADER_WAIT = 0.1
    for holds_job in (True, False):
        stream = Stream()
        log = stream.log()
        await write(log)
        stream.remove_all()
        stream.holds_job = holds_job
        try:
            await log.append("model:chunk:v1", text="b")
        except Lost:
            assert not holds_job
            assert not stream.messages
        else:
            assert holds_job
            assert (log.seq, log.stream_seq) == (4, 4)


async def a_late_delivery_of_a_purged_job_does_not_bring_it_back():
    for count, age, holds_job, is_claimed in (
        (1, 0, False, True),
        (1, 5, True, True),
        (1, 5, False, False),
        (2, 0, True, True),
        (2, 0, False, False),
    ):
        stream = Stream()
        stream.holds_job = holds_job
        claimed = await stream.delivery(count, age).claim()
        assert (claimed is not None, len(stream.messages)) == (is_claimed, 2 if is_claimed else 0), (count, age, holds_job)


async def a_job_that_the_leader_of_the_queue_lacks_was_not_purged():
    stream = Stream()
    stream.holds_job, stream.queue_end = False, 6
    for count, age in ((1, 5), (2, 0)):
        try:
            await stream.delivery(count, age).claim()
        except GiveBack as back:
            assert (back.seconds, stream.messages) == (10, [])
        else:
            raise AssertionError("the job was claimed, or taken for a purged one")
    stream.holds_job, stream.queue_end = True, 7
    assert await stream.delivery(3, 15).claim()


async def an_id_that_names_another_kind_is_not_a_job_of_this_one():
    for job in ("other:j", "k:k:j", ":j"):
        try:
            Stream().delivery(1, 0, job)
        except ValueError:
            continue
        raise AssertionError(job)
    assert await Stream().delivery(1, 0, "k:j").claim()


async def a_question_is_answered_only_where_answers_belong():
    attempt = Stream().delivery(1, 0, "k:j")
    for reply in ("", "tw.chunks.0.k.j", "tw.alive.j", "tw.alive.k:j", "tw.jobs.callback.j"):
        await attempt.signal(SimpleNamespace(reply=reply))
    assert (attempt.look, attempt.asked) == (True, ["tw.alive.k:j"])


async def the_subjects_of_a_job_have_the_kind_that_the_id_names():
    broker = Broker(SimpleNamespace(jetstream=lambda timeout: None), "tw", 1)
    assert broker.of_job("j") == ("TW_CHUNKS_0", "tw.chunks.0.j")
    assert broker.of_job("k:j") == ("TW_CHUNKS_0", "tw.chunks.0.k.j")
    assert (broker.queued("j"), broker.queued("k:j")) == ("tw.jobs.*.j", "tw.jobs.k.k:j")


for test in (
    messages_that_are_not_events_do_not_stop_the_writer,
    a_claim_finds_the_last_event_before_such_messages,
    an_expectation_about_another_subject_proves_no_event,
    another_owner_is_noticed_behind_such_messages,
    a_leader_that_lacks_events_does_not_end_the_attempt,
    a_log_that_stays_behind_was_restored,
    only_the_log_of_a_queued_job_continues_after_all_events_expired,
    a_late_delivery_of_a_purged_job_does_not_bring_it_back,
    a_job_that_the_leader_of_the_queue_lacks_was_not_purged,
    an_id_that_names_another_kind_is_not_a_job_of_this_one,
    a_question_is_answered_only_where_answers_belong,
    the_subjects_of_a_job_have_the_kind_that_the_id_names,
):
    asyncio.run(asyncio.wait_for(test(), 20))
    print(json.dumps(test.__name__), flush=True)
