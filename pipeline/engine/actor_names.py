"""The names of the runtime's own actors: settings, statistics, traces and errors know them by these."""

from actors.compute_scheduler import ComputeScheduler
from actors.disk_reader import DiskReader
from actors.expert_keeper import ExpertKeeper
from actors.expert_planner import ExpertPlanner
from actors.expert_reader import ExpertReader
from actors.expert_uploader import ExpertUploader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner

PLANNER, READER, STAGER = PrefetchPlanner.name, DiskReader.name, PinnedStager.name
UPLOADER, SCHEDULER = GpuUploader.name, ComputeScheduler.name
ACTORS = (PLANNER, READER, STAGER, UPLOADER, SCHEDULER)
"""The actors of the weights, in order."""

EXPERT_READER, EXPERT_UPLOADER, EXPERT_KEEPER = ExpertReader.name, ExpertUploader.name, ExpertKeeper.name
EXPERT_HANDING_ON = (ExpertPlanner.name,)
"""The actors of the experts, those that take time of a resource apart: the keeper counts that of computing them."""
EXPERT_CPU = "expert_cpu"
"""The products of experts that the CPU computes for a device are counted as the work of an actor of this name."""
EXPERT_COUNTER = "experts L{} {}"
"""What a trace calls the counters of a layer that wants experts."""

KV_ACTORS = KV_PLANNER, KV_READER, KV_UPLOADER, KV_SWAPPER = "kv_planner", "kv_reader", "kv_uploader", "kv_swapper"
"""The actors of the KV blocks: the actors of a companion bear its name."""
