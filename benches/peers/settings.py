"""What a run is asked for: one place for its sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Trajectories, except where said."""

    test: int = 512
    field_rounds: tuple = (8, 64)  # of the contest before the test trajectories
    finalists: int = 8
    solvers: tuple = ()  # of the fields, all if empty
    trajectories: int = 256  # of the fits by gradients, and of the cost matrix of GITS a quarter
    validation: int = 64  # which decide what a peer keeps
    teacher: int = 50  # model calls of the peers' teacher
    steps: int = 500  # of Adam
    batch: int = 32  # in a step of Adam
    rates: tuple = (3e-3, 1e-2)  # of Adam, all tried
    starts: int = 3  # that Adam tries
    cache_tuning: int = 16
    cache_solvers: tuple = ("euler", "dpmpp_2m", "ipndm_2")
    cache_longer: tuple = (1.5, 2, 3)  # steps in units of the evaluations
    ours_trajectories: int = 200
    ours_calls: int = 4000  # image-calls for each NFE, at most
    ours_batch: int = 4


FULL = Settings()
EMOJI = Settings(
    test=64,
    field_rounds=(2, 8),
    finalists=4,
    trajectories=128,
    validation=32,
    teacher=40,
    steps=500,
    batch=16,
    rates=(1e-2,),
    starts=2,
    cache_tuning=8,
    cache_solvers=("dpmpp_2m", "ipndm_2"),
    cache_longer=(2,),
    ours_calls=2896,  # a tenth of what the gradients take at 5
    ours_batch=8,
)
FOR = {
    "digits": FULL,
    "emoji pixel": EMOJI,
    "emoji flow": EMOJI,
    "emoji latent": EMOJI,
    "photos": Settings(test=128, field_rounds=(4, 16), trajectories=128, validation=32, steps=400, batch=16),
}
QUICK = Settings(
    test=16,
    field_rounds=(2,),
    finalists=2,
    solvers=("euler", "ipndm_2", "lms_4"),
    trajectories=16,
    validation=8,
    teacher=16,
    steps=6,
    batch=4,
    rates=(1e-2,),
    starts=1,
    cache_tuning=4,
    cache_solvers=("euler",),
    cache_longer=(2,),
    ours_trajectories=8,
    ours_calls=200,
)
