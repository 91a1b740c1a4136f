"""A run that many processes share: opened once, its shards worked on anywhere and in any order, then finished.

Any scheduler will do (Airflow's mapped tasks, Ray's actors): what it carries is a `Shard`, a few plain values. All
state stands in the ledger, so each of the three steps may be killed and done again.
"""

from seedbed.sharing.ending import finish_run
from seedbed.sharing.opening import begin_run
from seedbed.sharing.shard import Shard
from seedbed.sharing.working import run_shard

__all__ = ["Shard", "begin_run", "finish_run", "run_shard"]
