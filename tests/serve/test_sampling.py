import threading

import pytest

pytest.importorskip("psutil", reason="needs psutil")

from vitesse.benchmark.sensor import Reading
from vitesse.errors import MissingExtra
from vitesse.serve.sampling import GPU, PROCESSOR, Sampler, openers_for


class FakeSensor:
    def __init__(self, values, throttling=()):
        self.values, self.throttling, self.fails, self.closed = values, throttling, None, False

    def read(self):
        if self.fails:
            raise self.fails
        return Reading(self.values, self.throttling, self.throttling)

    def own_mb(self):
        return 700.0

    def free_mb(self):
        return 9000.0

    def close(self):
        self.closed = True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_sensors_are_read_together():
    gpu = FakeSensor({"gpu_percent": 80.0, "gpu_memory_mb": 1000.0}, ("software power cap",))
    sensors = {PROCESSOR: lambda: FakeSensor({"memory_mb": 120.0}), GPU: lambda: gpu}
    sample = Sampler(lambda sample: None, sensors=sensors).sample()
    assert sample.values == {
        "memory_mb": 120.0, "gpu_percent": 80.0, "gpu_memory_mb": 1000.0, "gpu_memory_total_mb": 10_000.0,
        "gpu_memory_own_mb": 700.0,
    }  # fmt: skip
    assert sample.throttling == ("software power cap",)
    assert sample.missing == {}


def test_this_machine_s_processor_is_read():
    sample = Sampler(lambda sample: None, sensors=openers_for(None)).sample()
    assert sample.values["memory_mb"] > 10
    assert sample.values["cpu_percent"] >= 0


def test_a_sensor_that_cannot_be_opened_is_named_and_the_others_go_on():
    def refuse():
        raise MissingExtra("the NVIDIA driver cannot be asked about GPU 0")

    sensors = {PROCESSOR: lambda: FakeSensor({"memory_mb": 1.0}), GPU: refuse}
    sample = Sampler(lambda sample: None, sensors=sensors).sample()
    assert sample.values == {"memory_mb": 1.0}
    assert sample.missing == {GPU: "the NVIDIA driver cannot be asked about GPU 0"}


def test_a_sensor_that_dies_is_closed_left_alone_for_a_while_and_opened_again():
    opened, clock = [], Clock()

    def open_gpu():
        opened.append(FakeSensor({"gpu_percent": 1.0}))
        return opened[-1]

    sampler = Sampler(lambda sample: None, sensors={GPU: open_gpu}, clock=clock)
    assert sampler.sample().values
    opened[0].fails = RuntimeError("GPU is lost")
    assert sampler.sample().missing == {GPU: "RuntimeError: GPU is lost"}
    assert opened[0].closed
    clock.now = 29.0
    assert sampler.sample().missing == {GPU: "RuntimeError: GPU is lost"}
    assert len(opened) == 1
    clock.now = 31.0
    again = sampler.sample()
    assert (again.missing, again.values, len(opened)) == ({}, {"gpu_percent": 1.0}, 2)


def test_the_thread_tells_samples_survives_a_listener_s_error_and_closes_the_sensors():
    sensor, told, errors, enough = FakeSensor({"memory_mb": 1.0}), [], [], threading.Event()

    def tell(sample):
        told.append(sample)
        if len(told) == 1:
            raise ValueError("the listener broke")
        enough.set()

    sampler = Sampler(tell, interval_s=0.001, sensors={PROCESSOR: lambda: sensor}, failed=errors.append)
    with sampler:
        sampler.start()
        assert enough.wait(20)
    assert [str(error) for error in errors] == ["the listener broke"]
    assert sensor.closed
    sampler.close()  # twice does no harm


def test_a_sampler_that_was_never_started_closes():
    Sampler(lambda sample: None, sensors={}).close()
