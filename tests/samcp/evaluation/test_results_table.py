"""Tables of results."""

from samcp.evaluation import compare_with_oracle

MODEL = {"panoptic_seg": {"PQ": 30.0, "PQ_th": 20.0, "PQ_st": 0.0}, "sem_seg": {"mIoU": 55.55}}
ORACLE = {"panoptic_seg": {"PQ": 60.0, "PQ_th": 80.0, "PQ_st": 0.0}, "sem_seg": {"mIoU": 99.0}, "segm": {"AP": 5.0}}


def test_comparison_of_model_and_oracle():
    assert compare_with_oracle(MODEL, ORACLE) == [
        ["PQ", "30.0", "60.0", "50 %"],
        ["PQ_th", "20.0", "80.0", "25 %"],
        ["PQ_st", "0.0", "0.0", "–"],
        ["mIoU", "55.5", "99.0", "56 %"],
    ]


def test_undefined_metric():
    nan = {"panoptic_seg": {"PQ": float("nan")}}
    assert compare_with_oracle(nan, ORACLE) == [["PQ", "–", "60.0", "–"]]
