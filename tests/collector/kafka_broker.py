"""A real Kafka broker on loopback: one node that is broker and controller at once."""

import subprocess
from pathlib import Path

from tests.collector.support import Process, free_port, wait_for
from tests.tools import KAFKA

CLUSTER = "b3RlbC1hdWRpdC1rYWZrYQ"
TOPIC = "otel-audit"
_LOGGING = ("defaultLogLevel=warn", "log.kafka.server.KafkaRaftServer=info")


class Broker:
    """A broker that can be killed and started again with what it holds.

    Args:
        folder: for its data, configuration and output.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        port, controller = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self._properties = folder / "server.properties"
        self._properties.write_text(
            "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n"
            f"listeners=PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\nlog.dirs={folder / 'data'}\n"
            "offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\nshare.coordinator.state.topic.replication.factor=1\n"
            "transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n"
            "group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=false\n"
            "broker.heartbeat.interval.ms=500\nbroker.session.timeout.ms=3000\n"
        )
        self.tool("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self._properties))
        self.process = self._start()

    def _java(self, main: str, *arguments: str) -> list[str]:
        memory = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        logging = [f"-Dorg.slf4j.simpleLogger.{setting}" for setting in _LOGGING]
        return ["java", *memory, *logging, "-cp", f"{KAFKA.get() / 'lib'}/*", main, *arguments]

    def tool(self, main: str, *arguments: str) -> str:
        """What one of Kafka's programs prints."""
        done = subprocess.run(self._java(main, *arguments), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _start(self) -> Process:
        log = self._folder / "broker.log"
        seen = log.read_text().count("Kafka Server started") if log.exists() else 0
        process = Process(self._java("kafka.Kafka", str(self._properties)), log, cwd=self._folder)

        def ready() -> bool:
            assert process.exit_code is None, process.said()[-3000:]
            return process.said().count("Kafka Server started") > seen

        try:
            wait_for(ready, "Kafka is ready")
        except BaseException:
            process.kill()
            raise
        return process

    def restart(self) -> None:
        """Start again after `process.kill()`."""
        self.process = self._start()

    def create_topic(self, partitions: int = 3) -> None:
        """The topic, as `kafka.yaml` wants it."""
        self.tool(
            "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", self.address, "--create", "--topic", TOPIC,
            "--partitions", str(partitions), "--config", "max.message.bytes=20971520", "--config", "retention.ms=-1",
        )  # fmt: skip

    def committed(self) -> int:
        """Messages of the topic that the group `otel-audit` is done with."""
        described = self.tool(
            "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "--bootstrap-server", self.address,
            "--describe", "--group", "otel-audit",
        )  # fmt: skip
        rows = [line.split() for line in described.splitlines() if line.startswith("otel-audit")]
        return sum(int(row[3]) for row in rows if row[1] == TOPIC and row[3].isdigit())
