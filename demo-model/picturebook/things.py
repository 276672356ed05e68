"""The contents of the picture book: things, coloured shapes, grounds and positions, with the words for each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """One thing of the picture book; coloured shapes have no emoji and no fact."""

    name: str
    plural: str
    emoji: str
    category: str
    fact: str = ""


THINGS = (
    Thing("puppy", "puppies", "🐶", "animal", "puppies sleep most of the day."),
    Thing("kitten", "kittens", "🐱", "animal", "kittens are born with blue eyes."),
    Thing("rabbit", "rabbits", "🐰", "animal", "rabbits have teeth that never stop growing."),
    Thing("pig", "pigs", "🐷", "animal", "pigs roll in mud to stay cool."),
    Thing("frog", "frogs", "🐸", "animal", "frogs drink water through their skin."),
    Thing("chicken", "chickens", "🐔", "animal", "chickens take baths in dust."),
    Thing("penguin", "penguins", "🐧", "animal", "penguins can swim but cannot fly."),
    Thing("fish", "fish", "🐠", "animal", "fish sleep with their eyes open."),
    Thing("turtle", "turtles", "🐢", "animal", "turtles are as old as the dinosaurs."),
    Thing("butterfly", "butterflies", "🦋", "animal", "butterflies taste with their feet."),
    Thing("elephant", "elephants", "🐘", "animal", "elephants are the largest animals on land."),
    Thing("owl", "owls", "🦉", "animal", "owls cannot move their eyes."),
    Thing("lion", "lions", "🦁", "animal", "lions rest for twenty hours a day."),
    Thing("tulip", "tulips", "🌷", "flower", "tulips keep growing after they are cut."),
    Thing("rose", "roses", "🌹", "flower", "roses have grown for millions of years."),
    Thing("sunflower", "sunflowers", "🌻", "flower", "sunflowers turn to follow the sun."),
    Thing("carrot", "carrots", "🥕", "vegetable", "carrots were once purple."),
    Thing("tomato", "tomatoes", "🍅", "vegetable", "tomatoes first grew in South America."),
    Thing("corn cob", "corn cobs", "🌽", "vegetable", "corn cobs have an even number of rows."),
    Thing("eggplant", "eggplants", "🍆", "vegetable", "eggplants are cousins of the potato."),
    Thing("pepper", "peppers", "🫑", "vegetable", "peppers turn red when they are ripe."),
    Thing("banana", "bananas", "🍌", "fruit", "bananas float in water."),
    Thing("strawberry", "strawberries", "🍓", "fruit", "strawberries wear their seeds on the outside."),
    Thing("watermelon", "watermelons", "🍉", "fruit", "watermelons are mostly water."),
    Thing("sandwich", "sandwiches", "🥪", "food", "sandwiches are named after an English earl."),
    Thing("pizza", "pizzas", "🍕", "food", "pizzas were first made in Naples."),
    Thing("cake", "cakes", "🎂", "food", "cakes were once sweetened with honey."),
    Thing("donut", "donuts", "🍩", "food", "donuts have a hole to cook evenly."),
    Thing("ice cream", "ice creams", "🍦", "food", "ice creams were once made with snow."),
    Thing("burger", "burgers", "🍔", "food", "burgers take their name from Hamburg."),
    Thing("car", "cars", "🚗", "vehicle", "cars have about thirty thousand parts."),
    Thing("bus", "buses", "🚌", "vehicle", "buses were first pulled by horses."),
    Thing("train", "trains", "🚂", "vehicle", "trains can float on magnets."),
    Thing("boat", "boats", "⛵", "vehicle", "boats are older than the wheel."),
    Thing("bicycle", "bicycles", "🚲", "vehicle", "bicycles need no fuel at all."),
    Thing("rocket", "rockets", "🚀", "vehicle", "rockets can reach space in minutes."),
    Thing("plane", "planes", "✈", "vehicle", "planes fly high to save fuel."),
    Thing("tractor", "tractors", "🚜", "vehicle", "tractors pull hard but drive slowly."),
    Thing("house", "houses", "🏠", "building", "houses were once built of mud."),
    Thing("tent", "tents", "⛺", "building", "tents were used in the ice age."),
    Thing("castle", "castles", "🏰", "landmark", "castles have very thick walls."),
    Thing("tower", "towers", "🗼", "landmark", "towers sway a little in the wind."),
    Thing("statue", "statues", "🗽", "landmark", "statues can turn green in the rain."),
    Thing("couple", "couples", "👫", "person", "couples often begin to walk in step."),
    Thing("baby", "babies", "👶", "person", "babies have more bones than adults."),
    Thing("princess", "princesses", "👸", "person", "princesses can become queens."),
    Thing("basket", "baskets", "🧺", "household item", "baskets are older than clay pots."),
    Thing("door", "doors", "🚪", "household item", "doors were once made of stone."),
    Thing("chair", "chairs", "🪑", "household item", "chairs were once a sign of power."),
    Thing("key", "keys", "🔑", "household item", "keys were first made of wood."),
    Thing("umbrella", "umbrellas", "☂", "household item", "umbrellas were first made against the sun."),
    Thing("book", "books", "📕", "household item", "books were once written by hand."),
    Thing("clock", "clocks", "⏰", "household item", "clocks first had only one hand."),
    Thing("cup", "cups", "☕", "household item", "cups had no handles for centuries."),
    Thing("pumpkin", "pumpkins", "🎃", "decoration", "pumpkins can be as heavy as a car."),
    Thing("candle", "candles", "🕯", "decoration", "candles burn with round flames in space."),
    Thing("gift", "gifts", "🎁", "decoration", "gifts were once wrapped in cloth."),
    Thing("balloon", "balloons", "🎈", "decoration", "balloons stick to hair after rubbing."),
    Thing(
        "Christmas tree", "Christmas trees", "🎄", "decoration", "Christmas trees grow for about seven years."
    ),
    Thing("snowman", "snowmen", "⛄", "decoration", "snowmen were built in the Middle Ages."),
)

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")

COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (212, 30, 40),
    "orange": (250, 130, 15),
    "yellow": (252, 220, 35),
    "green": (30, 140, 60),
    "blue": (35, 85, 215),
    "purple": (135, 45, 170),
    "black": (20, 20, 22),
    "white": (252, 252, 252),
}

GROUND_RGB: dict[str, tuple[int, int, int]] = {
    "green": (125, 190, 95),
    "blue": (105, 170, 228),
    "yellow": (245, 226, 120),
    "white": (240, 240, 238),
    "pink": (248, 176, 204),
    "gray": (152, 154, 158),
    "brown": (146, 104, 70),
    "purple": (166, 128, 210),
    "orange": (246, 166, 84),
    "red": (206, 76, 72),
}

# Things that nobody could make out on a ground of their own colour.
CAMOUFLAGED_THINGS_BY_GROUND = {
    "green": ("pepper",),
    "pink": ("pig",),
    "gray": ("elephant", "bicycle"),
    "brown": ("door",),
    "purple": ("elephant",),
    "orange": ("pizza", "basket", "baby", "key"),
    "red": ("balloon", "door", "tomato"),
}

POSITION_PHRASES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)

CATEGORY_PLURALS = {
    "animal": "animals",
    "flower": "flowers",
    "vegetable": "vegetables",
    "fruit": "fruits",
    "food": "foods",
    "vehicle": "vehicles",
    "building": "buildings",
    "landmark": "landmarks",
    "person": "people",
    "household item": "household items",
    "decoration": "decorations",
    "shape": "shapes",
}

# Everything that can stand in a cell, by its class id; class 0 is the empty cell.
_COLORED_SHAPES = tuple((shape, color) for shape in SHAPES for color in COLOR_RGB)
CATALOG = (
    Thing("none", "none", "", "none"),
    *THINGS,
    *(
        Thing(f"{color} {shape}", f"{color} {shape}s".replace("crosss", "crosses"), "", "shape")
        for shape, color in _COLORED_SHAPES
    ),
)
NUM_CLASSES = len(CATALOG)
FIRST_SHAPE_ID = len(THINGS) + 1


def is_colored_shape(class_id: int) -> bool:
    """Whether a class id is a coloured shape."""
    return class_id >= FIRST_SHAPE_ID


def shape_and_color(class_id: int) -> tuple[str, str]:
    """(shape, colour) of the class id of a coloured shape."""
    return _COLORED_SHAPES[class_id - FIRST_SHAPE_ID]


def class_id_of(name: str) -> int:
    """The class id of a thing ("puppy") or of a coloured shape ("red circle")."""
    for class_id, thing in enumerate(CATALOG):
        if thing.name == name:
            return class_id
    raise ValueError(f"no thing is named {name!r}; the names are in picturebook.things.CATALOG")
