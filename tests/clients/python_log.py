"""Tests `JobLog` and claims of clients/python against a stream in memory: messages that are not events, a leader that was cut
off, purges and segments.

The argument is {"library": folder}. Prints the name of each test that has passed, as a JSON string a line.
"""

import asyncio, hashlib, json, sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

given = json.loads(sys.argv[1])
sys.path.insert(0, given["library"])

from nats.errors import MaxPayloadError
from nats.js.errors import BadRequestError, NotFoundError
from tailwater import _log
from tailwater._attempt import Attempt, GiveBack
from tailwater._broker import FENCE, Broker, base64url
from tailwater._log import ENDS, Cancelled, JobLog, Lost
from tailwater._segment import Segment, completes_segment
from tailwater._segment_writer import DIGEST


class Stream:
    """The messages of one job, as (data, headers). The server that answers knows the first `known` of them; None: all."""

    def __init__(self):
        self.messages, self.known, self.refused, self.removed, self.holds_job = [], None, 0, 0, True
        # The last stream sequence of the queue. The job has 7.
        self.queue_end = 7
        # The segments by subject. None: publishing one fails.
        self.segments = {}
        # The messages that others store after each publish, whose answer is lost. None: no answer is lost.
        self.lost_ack_before = None
        # Whether requests for a message by its stream sequence are lost.
        self.loses_reads = False

    def at(self, index):
        if not 0 <= index < len(self.messages[: self.known]):
            raise NotFoundError
        data, headers = self.messages[index]
        return SimpleNamespace(seq=self.removed + index + 1, data=data, headers=headers, subject="log")

    async def get_last_msg(self, stream, subject):
        return self.at(len(self.messages[: self.known]) - 1)

    async def get_msg(self, stream, seq, subject=None, next=False):
        if self.loses_reads and not next:
            raise asyncio.TimeoutError
        return self.at(seq - 1)

    async def publish(self, subject, data, headers):
        last = self.removed + len(self.messages) if self.messages else 0
        if self.known is not None or headers[FENCE] != str(last):
            self.refused += 1
            raise BadRequestError()
        self.messages.append((data, headers))
        if self.lost_ack_before is not None:
            self.messages += self.lost_ack_before
            raise asyncio.TimeoutError
        return SimpleNamespace(seq=self.removed + len(self.messages))

    async def publish_segment(self, subject, data, headers):
        if self.segments is None:
            raise MaxPayloadError
        assert headers == {FENCE: "0"}
        self.segments.setdefault(subject, data)

    async def is_queued(self, job):
        return self.holds_job

    async def stream_info(self, name, subjects_filter):
        assert (name, subjects_filter) == ("TW_JOBS", "tw.jobs.*.j")
        subjects = {"tw.jobs.k.j": 1} if self.holds_job else None
        return SimpleNamespace(state=SimpleNamespace(last_seq=self.queue_end, subjects=subjects))

    def remove_all(self):
        self.removed, self.messages = self.removed + len(self.messages), []

    def broker(self):
        client = SimpleNamespace(jetstream=lambda timeout: self, max_payload=1 << 20, publish=self.publish_segment)
        broker = Broker(client, "tw", 1)
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
    # -60: fresh, however long the test has to wait for a processor.
    for count, age, holds_job, is_claimed in (
        (1, -60, False, True),
        (1, 5, True, True),
        (1, 5, False, False),
        (2, -60, True, True),
        (2, -60, False, False),
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
    assert (broker.segment("j", 0), broker.segment("k:j", 7)) == ("tw.segments.0.j.0", "tw.segments.0.k.j.7")


async def chunks(log, last):
    """Appends events up to this sequence number."""
    while log.seq < last:
        await log.append("model:chunk:v1", text=f"{log.seq + 1} ")


async def taken_over(stream, attempt):
    """The log of a worker that takes the job over."""
    log = stream.log()
    assert await log.open()
    log.attempt = attempt
    await log.append("job:started:v1", kind="k", worker="w")
    return log


def segments_of(stream, first=1):
    """The segments of the events from this one on, and the digests, as one worker that writes all of them makes them."""
    segment, segments, digests = Segment("j", first), {}, {}
    for at, (data, headers) in enumerate(stream.messages, 1):
        event = json.loads(data) if data.startswith(b"{") else {}
        if event.get("seq") != segment.next_seq:
            continue
        if completes_segment(event["seq"], event["type"] in ENDS):
            digests[event["seq"]] = base64url(segment.digest_with(data))
            subject = f"tw.segments.0.j.{segment.number}"
            segments[subject], segment = segment.complete(at, data)
        else:
            segment.push(at, data)
    return segments, digests


def digests_in(stream):
    """The digests that the log holds, by sequence number."""
    with_digest = ((data, headers[DIGEST]) for data, headers in stream.messages if headers and DIGEST in headers)
    return {json.loads(data)["seq"]: digest for data, digest in with_digest}


async def the_bytes_of_segments_are_those_of_the_shared_cases():
    file = Path(__file__).parents[1] / "cases/segments.json"
    cases = json.loads(file.read_text())
    for case in cases:
        segment, at, found = Segment(case["job"], case["first"]), 0, []
        events = [(run["step"], run["text"] * run["times"]) for run in case["runs"] for _ in range(run["events"])]
        last = case["first"] + len(events) - 1
        for step, text in events:
            seq, at = segment.next_seq, at + step
            data = f"{seq} {text}".encode()
            if completes_segment(seq, seq == last):
                number, digest = segment.number, segment.digest_with(data).hex()
                stored, segment = segment.complete(at, data)
                sha256 = stored and hashlib.sha256(stored).hexdigest()
                found.append({"number": number, "digest": digest, "sha256": sha256})
            else:
                segment.push(at, data)
        assert found == case["segments"], case["name"]
    assert len(cases) >= 13


async def a_segment_is_written_after_64_events_and_at_the_end():
    stream = Stream()
    log = stream.log()
    assert not await log.open()
    await log.append("job:queued:v1", kind="k", input=None)
    stream.put(b"junk")
    log = await taken_over(stream, 1)
    for last in (40, 100, 150):
        await chunks(log, last)
        stream.put(b"junk")
    assert list(stream.segments) == ["tw.segments.0.j.0", "tw.segments.0.j.1"]
    await log.append("job:done:v1", finish_reason="stop")
    assert (stream.segments, digests_in(stream)) == segments_of(stream)
    assert list(digests_in(stream)) == [64, 128, 151]


async def segments_continue_when_another_worker_owns_the_job():
    stream = Stream()
    await write(stream.log())
    for attempt, last in ((1, 20), (2, 63), (3, 64), (4, 100), (5, 199)):
        await chunks(await taken_over(stream, attempt), last)
    log = await taken_over(stream, 6)
    stream.put(b"junk")
    assert not await log.check()
    await log.append("job:done:v1", finish_reason="stop")
    assert (stream.segments, digests_in(stream)) == segments_of(stream)
    assert len(stream.segments) == 4


async def a_worker_that_cannot_read_earlier_events_writes_no_segment_of_them():
    event = {"type": "model:chunk:v1", "job": "j", "attempt": 1, "ts": 1, "text": "a"}
    # Without the confirmation of what precedes it, and with a sequence number that is not the next one.
    for seq, fence in ((70, None), (9, 69)):
        stream = Stream()
        log = stream.log()
        await write(log)
        await chunks(log, 69)
        stream.put(json.dumps({**event, "seq": seq}).encode(), fence)
        log = await taken_over(stream, 2)
        await chunks(log, 128)
        stream.loses_reads = True
        await chunks(log, 200)
        segments, digests = segments_of(stream, 129)
        assert segments["tw.segments.0.j.2"] == stream.segments["tw.segments.0.j.2"]
        assert sorted(stream.segments) == ["tw.segments.0.j.0", "tw.segments.0.j.2"]
        assert (list(digests_in(stream)), digests_in(stream)[192]) == ([64, 192], digests[192])


async def a_segment_that_cannot_be_written_delays_no_event():
    stream = Stream()
    log = stream.log()
    await write(log)
    stream.segments = None
    await chunks(log, 70)
    log = await taken_over(stream, 2)
    stream.loses_reads = True
    await chunks(log, 130)
    assert [json.loads(data)["seq"] for data, _ in stream.messages] == list(range(1, 131))
    assert list(digests_in(stream)) == [64]


def cancel(seq):
    """A request to cancel, as a message."""
    event = {"type": "job:cancel-requested:v1", "job": "j", "seq": seq, "attempt": 1, "ts": 1}
    return json.dumps(event).encode(), {FENCE: str(seq - 1)}


async def events_that_were_stored_without_an_answer_are_in_the_segment():
    for others in ([], [(b"junk", None)]):
        stream = Stream()
        log = stream.log()
        await write(log)
        for last in (30, 63, 64):
            await chunks(log, last - 1)
            stream.lost_ack_before = others
            await chunks(log, last)
            stream.lost_ack_before = None
        await chunks(log, 70)
        assert (stream.segments, digests_in(stream)) == segments_of(stream)
        assert len(stream.segments) == 1


async def a_cancelled_job_has_segments():
    # The request is the 64th event, or follows an event whose answer was lost.
    for is_lost in (False, True):
        stream = Stream()
        log = stream.log()
        await write(log)
        await chunks(log, 40 if is_lost else 63)
        if is_lost:
            stream.lost_ack_before = [cancel(42)]
        else:
            stream.messages.append(cancel(64))
        try:
            await log.append("model:chunk:v1", text="b")
        except Cancelled:
            stream.lost_ack_before = None
            await log.append("job:cancelled:v1")
        segments, digests = segments_of(stream)
        # A request has no digest. That of the next segment proves both.
        assert (stream.segments, digests_in(stream)) == (segments, {log.seq: digests[log.seq]})
        assert (log.seq, len(segments)) == ((43, 1) if is_lost else (65, 2))


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
    the_bytes_of_segments_are_those_of_the_shared_cases,
    a_segment_is_written_after_64_events_and_at_the_end,
    segments_continue_when_another_worker_owns_the_job,
    a_worker_that_cannot_read_earlier_events_writes_no_segment_of_them,
    a_segment_that_cannot_be_written_delays_no_event,
    events_that_were_stored_without_an_answer_are_in_the_segment,
    a_cancelled_job_has_segments,
):
    asyncio.run(asyncio.wait_for(test(), 20))
    print(json.dumps(test.__name__), flush=True)
