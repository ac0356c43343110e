"""What the open meshes are called: catalogue names, checked by hand, to readable categories.

Used when a split list is made. A committed list holds the category of each of its objects, so that
a change here changes no set that was built before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

OTHER = "other"
DROPPED = "dropped"

# The last word of a name decides ("Coffee table", "Table with tablecloth": up to the first "with").
_WORDS = {
    "animal": "bulldog cat chicken deer dog horse rabbit",
    "appliance": "blender brewer conditioning cooker cooktop dryer fan freezer fridge fryer "
    "furnace heater hood microwave mixer oven radiator refrigerator stove toaster",
    "bathroom": "bath bathtub bidet jacuzzi lavatory potty sink urinal vanity washbasin",
    "bed": "bed crib futon",
    "bench": "bench",
    "cabinet": "bookcase cabinet chest cupboard drawers dresser locker safe shelves wardrobe",
    "chair": "armchair chair ottoman puff seat stool wheelchair",
    "clothing": "bootie cap clothes dress glove hat helmet jacket mocassin shoes short skirt "
    "slippers sneakers suit sunglasses trousers watch",
    "container": "aquarium backpack barrel basin basket bin bottle box briefcase can container "
    "crate dustbin extinguisher flacon handbag jar mailbox milk penbox suitcase trashcan tray "
    "trunck vase",
    "cycle": "bicycle bike motorbike scooter tricycle",
    "display": "ibook laptop tablet tv",
    "electronics": "amplifier camera cctv headphones intercom iphone joystick phone playstation "
    "printer projector radio speaker stereo",
    "food": "apples bread butter cake fries hamburger steak",
    "kitchenware": "ashtray bowl creamer cup glass hashtray kettle mug pan plate pot pottery scale "
    "shaker squeezer sugar teapot",
    "lamp": "candle lamp lamppost lantern light lights spotlight strip",
    "person": "boy female girl male",
    "plant": "acacia bamboo beech blossom bonsai bush cactus cypress ficus flowers hedge lily "
    "maple orchids palm pine plant poplar spathiphyllum tree tulips yucca",
    "railing": "fence railing",
    "sofa": "bz couch sofa",
    "sport": "ball basketball goal racket treadmill",
    "switch": "plug switch",
    "table": "desk table trestles workbench",
    "tool": "broom brush comb drill flashlight fork grinder hammer knife marker pencil pliers "
    "ruler saw scissors screwdriver shovel spoon stapler tape tool",
    "toy": "bear chessboard doll flipper puzzle sandpit seesaw swing toy trampoline",
    "vehicle": "bus car lift suv truck van",
    DROPPED: "bathmat blind carpet curtain door doormat mat rug shutter sign slot tatami towel "
    "window crossing",
}

# Names whose last word misleads or says nothing.
_NAMES = {
    "appliance": (
        *("Air conditioning - External unit", "Air conditioning - Internal unit"),
        *("Clothes washing machine", "Coffee machine", "Coffee maker", "Dryer machine"),
        *("Induction cooker 2 zones", "Induction cooker 4 zones", "Sandwich maker"),
        *("Stone grill device", "Washing machine", "Water cooler"),
    ),
    "bathroom": (
        *("Shower head and faucet", "Shower stall", "Toilet paper dispenser", "Toilets unit"),
        "Towel rack",
    ),
    "bed": ("Air mattress", "Opened convertible sofa BZ"),
    "bench": ("Little bank", "Wood bank"),
    "cabinet": (
        *("Bedside table", "Changing table", "Contemporary living room"),
        *("Island", "Island extension", "TV stand"),
    ),
    "chair": ("Piano bench", "Pool lounge"),
    "clothing": ("Glasses", "Socket"),  # the catalogue's "Socket" is a sock
    "container": ("Cosmetics pot", "Gift", "Soap"),
    "cycle": ("Yamaha YZR R6",),
    "display": ("Apple iMac 1998", "Apple iMac 2004", "TV 16:9"),
    "electronics": (
        *("DVD player", "Entry bell ring", "Entry speech unit", "MP3 base", "MP3 station"),
        *("Number lock", "Smoke detector", "TV remote control", "Thermometer"),
    ),
    "food": ("Hot dog", "Roasted chicken"),
    "kitchenware": (
        *("Boiler", "Bread box", "Chopping board", "Coffee press", "Kitchen tools", "Knife stand"),
        *("Oil servers", "Paper towel holder", "Plate, glasses and cutlery"),
        *("Spice tower", "Sushi tray"),
    ),
    "lamp": ("Wall lamp artwork",),
    "plant": ("Blue pine under snow", "Flower box", "Pine under snow", "Plant box"),
    "sofa": ("Sofa 2 seats", "Sofa 3 seats"),
    "sport": (
        *("Abdominal bench", "Basketball net", "Diving board", "Fitness tower", "Indoor bike"),
        *("Skateboard", "Table tennis bat"),
    ),
    "switch": ("Wall double socket", "Wall socket"),
    "table": ("Table tennis",),
    "tool": ("Keys", "Tape measure"),
    "toy": (
        *("Card game", "Child hut", "Children game", "Dart game", "Doll house", "Rocking horse"),
        *("Rubik's cube", "Snowman", "Toy train"),
    ),
    "vehicle": (
        *("Car model", "Chevrolet", "Concept Sedan 01", "Concept Sedan 02"),
        *("Concept Sedan 02 Sport", "Ford Focus", "Peugeot 308 CC", "Renault Scenic", "Seat Leon"),
        "VW new beetle",
    ),
    DROPPED: (  # what is painted on a road, printed on a note
        *("Arrow straight ahead", "Arrow turn right", "Arrow turn right and ahead"),
        *("Bill 10€", "Bill 20€", "Bill 50€", "Parking slot 45°", "Parking slot 60°"),
        *("Parking slot 75°", "Parking slot 90°"),
    ),
    OTHER: ("Clothes horse", "Rail crossing"),
}

_CATEGORY_OF_WORD = {word: name for name, words in _WORDS.items() for word in words.split()}
_CATEGORY_OF_NAME = {full: name for name, names in _NAMES.items() for full in names}


def category_of(name: str) -> str:
    """Return the category of a catalogue name; `OTHER`, or `DROPPED` for what has no volume."""
    if name in _CATEGORY_OF_NAME:
        return _CATEGORY_OF_NAME[name]
    words = re.sub(r"\b(with|and|on|-)\b.*", "", name.lower()).split() or [""]
    return _CATEGORY_OF_WORD.get(words[-1].strip(","), OTHER)


def merge_small(categories: Mapping[str, str], least: int) -> dict[str, str]:
    """Return object -> category with those of fewer than `least` objects merged into `OTHER`."""
    counts = Counter(categories.values())
    return {
        key: category if counts[category] >= least else OTHER
        for key, category in categories.items()
    }
