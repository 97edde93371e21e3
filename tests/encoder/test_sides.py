import pytest

from medfinetune.encoder.sides import swap_sides


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Left knee, grade 2.", "Right knee, grade 2."),
        ("RIGHT KNEE", "LEFT KNEE"),
        ("nodule in the left lung, none in the right", "nodule in the right lung, none in the left"),
        ("right-sided effusion", "left-sided effusion"),
        ("leftward deviation, rightmost rib", "rightward deviation, leftmost rib"),
        ("左侧胸腔积液", "右侧胸腔积液"),
        ("左膝骨关节炎,右膝正常", "右膝骨关节炎,左膝正常"),
        ("左乳房肿块", "右乳房肿块"),
        # No side is named: nothing to swap.
        ("no fracture", "no fracture"),
        ("bright copyright, upright, cleft lip", "bright copyright, upright, cleft lip"),
        ("disc prolapse at L4/L5", "disc prolapse at L4/L5"),
        ("cardiomegaly", "cardiomegaly"),
        ("肿块直径3厘米左右", "肿块直径3厘米左右"),
        ("肝脏肿块3厘米左右", "肝脏肿块3厘米左右"),
        ("左膝肿块3厘米左右", "右膝肿块3厘米左右"),
        ("", ""),
    ],
)
def test_swapped(text, swapped):
    assert swap_sides(text) == swapped
    assert swap_sides(swapped) == text


@pytest.mark.parametrize(
    "text",
    [
        "left-to-right shunt",
        "left to right shunt",
        "dextrocardia",
        "situs inversus totalis",
        "levoscoliosis",
        "left axis deviation",
        "R",
        "AP view, marker L",
        "R knee",
        "Lt. knee",
        "OS: normal fundus",
        "opacity in the RUL",
        "RMLO view",
        "left ventricle dilated",
        "right atrium enlarged",
        "right lobe of the liver",
        "right middle lobe opacity",
        "enlarged heart, left effusion",
        "left untreated",
        "the patient left the ward",
        "was left in place",
        "at right angles",
        "right-handed patient",
        "left and right knee",
        "左向右分流",
        "右位心",
        "内脏反位",
        "左心室增大",
        "右肺中叶",
        "肝右叶",
        "左氧氟沙星",
        "左利手",
    ],
)
def test_left_alone(text):
    assert swap_sides(text) is None
