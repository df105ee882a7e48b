#!/usr/bin/env python3
"""Make Kvasir's demo model from nothing: text, tokenizer, weights.

What:    1. a seeded grammar writes short children's stories (no outside text);
         2. a byte-level BPE tokenizer is trained on them;
         3. a small Llama-like model with a different number of KV heads per layer learns them;
         4. the result is written in Hugging Face layout beside this script.
Needs:   Python 3.10+, `pip install torch tokenizers safetensors numpy`. The product itself never needs Python.
Use:     train.py                     train and write the model (about 25 minutes on one core)
         train.py --text-only 3       print three stories of the grammar
         train.py --check             read the written files back with a separate forward pass:
                                      held-out loss and greedy continuations
Repeats: stories and tokenizer depend on --seed alone and repeat exactly (same version of `tokenizers`).
         Training uses torch's deterministic algorithms and one thread unless told otherwise: the same torch
         on the same kind of CPU with the same --threads repeats it bit for bit. Another CPU or version rounds
         differently and gives another model of the same quality.
Source:  written for this project; tensor names are those of Hugging Face's Llama and DeciLM models.
"""

import argparse
import json
import math
import os
import random
import re
import time

HERE = os.path.dirname(os.path.abspath(__file__))
END = "<|endoftext|>"
END_ID = 0
CONTEXT = 512

# =====================================================================================================
# 1. The stories
#
# Text is written in a small template language:
#   [a|b|c]  one of these (may be nested, may be empty); earlier ones are a little more likely, so that the
#            most likely continuation is clearly the most likely and greedy text does not hang on rounding
#   {key}    a fact of this story, chosen once (see make_facts), so names and things stay the same;
#            {Key} is the same with a capital first letter
# Hero and friend are always of different sex, so "he" and "she" are never ambiguous between them.
# =====================================================================================================


class Dice:
    """Seeded choices. Adds up the surprise (in nats) of what was chosen: the entropy of the grammar."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.nats = 0.0

    def pick(self, options):
        weights = [1.0 / (i + 3) for i in range(len(options))]
        i = self.rng.choices(range(len(options)), weights)[0]
        self.nats -= math.log(weights[i] / sum(weights))
        return options[i]

    def two(self, options):
        """Two different ones."""
        first = self.pick(options)
        return first, self.pick([o for o in options if o != first])


GIRLS = "Mia Lily Anna Rosa Ella Nora Zoe Ivy Maya Ruby Emma Clara".split()
BOYS = "Tom Ben Leo Sam Max Finn Noah Oscar Jack Hugo Theo Eli".split()
PET_NAMES = {"she": "Hazel Poppy Daisy Willow Pearl Minnie".split(), "he": "Rusty Pip Bramble Moss Tuck Barley".split()}
HOMES = {
    "fox": "den", "rabbit": "burrow", "bear": "cave", "mouse": "little hole", "hedgehog": "nest of leaves",
    "squirrel": "hollow tree", "badger": "den", "mole": "tunnel", "beaver": "lodge", "otter": "den",
}
SYLLABLES = "ba be bo da di do fa fe fi ka ki ko la le li lo ma mi mo na ni no pa pe ra ri ro sa si ta ti".split()
TRAITS = "little brave kind clever shy curious gentle cheerful young quiet".split()
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}

# place: (where, to where, name, five spots to look in)
PLACES = [
    ("in the garden", "to the garden", "the garden",
     ["under the bench", "behind the roses", "in the tall grass", "near the fence", "beside the well"]),
    ("in the forest", "to the forest", "the forest",
     ["under the ferns", "behind a fallen log", "between the roots of an oak", "near the mossy rocks",
      "beside the path"]),
    ("by the river", "to the river", "the river",
     ["under the bridge", "in the reeds", "behind the willow", "near the stepping stones", "on the sandy bank"]),
    ("on the beach", "to the beach", "the beach",
     ["behind the rocks", "near the old boat", "under the pier", "among the shells", "beside the dunes"]),
    ("in the meadow", "to the meadow", "the meadow",
     ["in the clover", "under a bush", "by the stream", "behind the haystack", "near the stone wall"]),
    ("in the park", "to the park", "the park",
     ["under the slide", "behind the fountain", "near the gate", "beside the pond", "under the chestnut tree"]),
    ("on the hill", "to the hill", "the hill",
     ["behind the big stone", "in the heather", "under the pine tree", "near the windmill", "beside the sheep path"]),
    ("on the farm", "to the farm", "the farm",
     ["in the barn", "behind the hen house", "under the wagon", "near the duck pond", "beside the gate"]),
]

# weather: (scene, how a thing is lost, later)
WEATHER = {
    "rainy": ("Rain [tapped on the leaves|fell softly on the roofs] and the puddles [grew big|shone].",
              "{his} {hands} were wet, and the {obj} slipped away without a sound",
              "The rain had stopped, and a rainbow stood over {the}."),
    "sunny": ("The sky was blue and the birds were singing.",
              "{he} put the {obj} down to rest in the sun, and when {he} woke up, it was gone",
              "The sun was going down, and the sky was [gold|pink]."),
    "windy": ("The [wind blew through the trees|leaves danced in the air].",
              "a strong gust of wind pulled the {obj} out of {his} {hands}",
              "The wind had grown calm, and the first star was out."),
    "snowy": ("Snow [lay on the ground|covered every roof] and the air was [still|clear].",
              "{he} slipped on the ice, and the {obj} vanished in the snow",
              "Soft snow was falling again, and the windows were bright."),
    "foggy": ("The fog was as white as milk.",
              "the fog was so thick that {he} dropped the {obj} and could not see where it fell",
              "The fog had lifted, and {the} looked [new|bright] again."),
    "cold": ("There was frost on the grass and every breath made a little cloud.",
             "{his} {hands} were so cold that {he} let the {obj} fall",
             "The moon came up, round and bright."),
    "warm": ("The air smelled of [flowers|honey] and the bees were busy.",
             "{he} chased a butterfly and forgot where {he} had left the {obj}",
             "The evening was soft and warm, and the crickets were singing."),
}
TIMES = ["morning", "day", "afternoon", "evening"]
COLOURS = "red blue green yellow golden white silver purple".split()
THINGS = "lantern drum whistle bell basket button cup spoon book ribbon".split()
FLYING = "kite ball hat scarf balloon".split()
TREATS = ["warm bread with honey", "a big apple pie", "hot soup", "blueberry pancakes", "sweet plums",
          "ginger cookies", "a bowl of strawberries", "nut cake"]
JUNK = ["an old shoe", "a broken cup", "a sleepy snail", "two brown leaves", "a round stone", "an empty nest"]
ELDERS = {True: ["Grandma", "Grandpa", "the baker", "the old sailor", "Aunt Rose", "the miller"],
          False: ["the old owl", "the wise goose", "the old toad", "the grey heron", "the old goat"]}

# Facts that belong to one plot only; each line is one consistent set.
BABIES = [
    {"baby": "duckling", "sound": "peep", "mother": "a white duck", "bed": "soft grass"},
    {"baby": "lamb", "sound": "baa", "mother": "a woolly sheep", "bed": "dry hay"},
    {"baby": "kitten", "sound": "meow", "mother": "a grey cat", "bed": "an old coat"},
    {"baby": "chick", "sound": "cheep", "mother": "a brown hen", "bed": "clean straw"},
    {"baby": "foal", "sound": "neigh", "mother": "a tall brown horse", "bed": "dry hay"},
]
TOOLS = [
    {"tool": "Let us find a long stick",
     "use": "They found a long stick and pushed the {o} until it came loose."},
    {"tool": "Stand on my shoulders",
     "use": "{H} stood on {f}'s shoulders and stretched as far as {he} could."},
    {"tool": "We need a ladder",
     "use": "They carried a ladder from the barn, and {h} climbed up step by step."},
    {"tool": "Let us throw a rope over the branch",
     "use": "They threw a rope over the branch and shook it hard."},
]
FEARS = [
    {"fear": "the dark", "why": "At night, every shadow looked like a monster.",
     "help": "{F} lit a small lamp and showed {him} that the shadows were only coats and chairs.",
     "done": "That night, {h} blew out the lamp alone and slept well."},
    {"fear": "deep water", "why": "The water looked cold and had no end.",
     "help": "{F} held {his} {hands} and they stood where the water reached their knees.",
     "done": "By the end of the week, {h} could swim across the pond."},
    {"fear": "thunder", "why": "When it rolled over the hills, {he} hid under a blanket.",
     "help": "{F} taught {him} to count slowly after each flash, and the numbers grew and grew.",
     "done": "When the next storm came, {h} counted aloud and even laughed."},
    {"fear": "the high bridge", "why": "It shook at every step and the water was far below.",
     "help": "{F} walked in front and told {him} to look only at the other side.",
     "done": "Soon {h} could walk over the bridge and back again."},
    {"fear": "singing in front of others", "why": "{His} voice became small when somebody listened.",
     "help": "{F} sat down and sang with {him}, first softly and then louder.",
     "done": "At the summer feast, {h} sang alone, and everyone clapped."},
]
DISHES = [
    {"dish": "a birthday cake", "d": "cake", "miss": "eggs", "from": "The hens have laid plenty", "smell": "sugar"},
    {"dish": "a pot of soup", "d": "soup", "miss": "carrots", "from": "My garden is full of them",
     "smell": "herbs"},
    {"dish": "an apple pie", "d": "pie", "miss": "apples", "from": "My tree has too many", "smell": "cinnamon"},
    {"dish": "a loaf of nut bread", "d": "bread", "miss": "nuts", "from": "I have a full sack", "smell": "warm bread"},
]
PLANTS = [
    {"plant": "a sunflower", "p": "sunflower", "end": "taller than the door",
     "gift": "All the birds came for its seeds."},
    {"plant": "a pumpkin", "p": "pumpkin", "end": "as big as a chair", "gift": "It was enough for ten pots of soup."},
    {"plant": "a bean plant", "p": "bean plant", "end": "all the way up to the roof",
     "gift": "There were beans for everyone."},
    {"plant": "a rose bush", "p": "rose bush", "end": "full of pink flowers",
     "gift": "Its sweet smell filled the air."},
]
GIFTS = [
    {"gift": "a necklace of shells", "made": "{He} picked the prettiest shells and put them on a string."},
    {"gift": "a picture of the hills", "made": "{He} mixed colours from berries and painted all day."},
    {"gift": "a wooden spoon", "made": "{He} found a good piece of wood and carved it slowly."},
    {"gift": "a warm blanket", "made": "{He} took soft wool and worked until late at night."},
    {"gift": "a soft pillow", "made": "{He} filled it with feathers and sewed it with small stitches."},
]
BUILDS = [
    {"build": "a tower of stones", "b": "tower", "piece": "stone", "base": "put the widest stones at the bottom"},
    {"build": "a house of sticks", "b": "house", "piece": "stick", "base": "tied the corners with grass"},
    {"build": "a castle of clay", "b": "castle", "piece": "brick", "base": "let every brick dry in the air"},
    {"build": "a raft of branches", "b": "raft", "piece": "branch", "base": "tied every knot twice"},
]
TREASURES = [
    {"chest": "a box of old letters", "keep": "They read the letters aloud by the fire."},
    {"chest": "seven shining coins", "keep": "They bought a new bell for the school."},
    {"chest": "a bag of flower seeds", "keep": "In spring, the whole village was full of flowers."},
    {"chest": "a small music box", "keep": "Its tune was so sweet that everyone began to dance."},
]
NOISES = [
    {"noise": "a soft tapping", "truth": "only a branch that knocked on a stone"},
    {"noise": "a strange whistle", "truth": "only the wind in an empty bottle"},
    {"noise": "a slow scratching", "truth": "only a beetle that was walking over dry leaves"},
    {"noise": "a deep humming", "truth": "only a big bee that was looking for flowers"},
]

OPENINGS = [  # each is one paragraph start; the weather of the story follows from {w}
    "Once upon a time, there was {hnew} who lived {lives}. {He} {likes}. One {w} {time}, {he} went {to}[.|. {scene}]",
    "One {w} {time}, {hfull} went {to}. {scene}",
    "{hfull} lived {lives}. {He} {likes}. One {w} {time}, {he} went {to}[.|. {scene}]",
    "It was a {w} {time}. {scene} {hfull} [was walking|walked] slowly {to}.",
    "Once there was {hnew}. {He} lived {lives}. On a {w} {time}, {he} went {to}[.|. {scene}]",
    "There was once {hnew} who {liked}. One {w} {time}, {he} was {in}. {scene}",
    "{hfull} woke up early. It was a {w} day. {scene} So {he} went {to}.",
    "Once upon a time, {hnew} lived {lives}. Everyone knew {him}, because {he} {liked}. "
    "One {w} {time}, {he} was {in}.",
    "Long ago, {hnew} lived {lives}. One {w} {time}, {he} went {to}. {scene}",
    "A long time ago, {hnew} lived {lives}. {He} {likes}. One {w} {time}, {he} went {to}.",
    "One day, {hfull} went {to}. It was a {w} {time}. {scene}",
    "In {land}, there lived {hnew}. {He} {likes}. One {w} {time}, {he} went {to}.",
]
LIKES = ["to sing", "to climb trees", "to help others", "to collect round stones", "to tell stories",
         "to look at the clouds", "to draw pictures", "to dance", "to ask questions"]

ENDINGS = [  # after a plot that ends on the same day with both friends there
    "[Then they|They] walked home [together|side by side] and shared {treat}.",
    "{later} {H} and {f} walked home [together|slowly] and [ate|shared] {treat}.",
    "{later} [It had been a good day.|What a day it had been!]",
    "That night, {h} fell asleep with a smile.",
    "{later} [Now they were hungry|They were tired and happy], and at home they had {treat}.",
    "They laughed [and laughed|all the way home], and {f} brought {treat} for both of them.",
]

# A plot: (may an ENDING follow, plot facts or None, what {obj} may be, paragraphs, last sentences).
PLOTS = [
    (True, None, THINGS + FLYING, [
        "[{He} took {his} {obj} with {him}.|{He} had {aobj}, and {he} carried it everywhere.] But {loss}. "
        "{H} looked [around|everywhere], but {he} could not [find|see] it.",
        "\"Where is my {obj}?\" [cried|whispered] {h}. {He} felt [very |]sad. [Just then|Soon], {fnew} came along. "
        "\"Do not [worry|cry],\" said {f}. "
        "\"[We will find it together|I will help you look|Four eyes see more than two].\"",
        "They looked {s1}, but they found only {junk}. Then they looked {s2}. \"[Here it is|I see it|Look]!\" "
        "[called|shouted] {f}. The {obj} was lying {s2}. \"Thank you, {fcall},\" said {h}[.| and hugged {fhim}.]",
    ], ["From that day on, {h} [took good care of|never lost] {his} {o}[ again|]."]),
    (True, TOOLS, FLYING, [
        "{He} was playing with {his} {obj}. [Suddenly|All at once], it flew [up|high into the air] and got stuck in a "
        "{tree} tree. {H} jumped as high as {he} could, but {he} could not reach it.",
        "{fnew} [saw this|heard {him}] and came [to help|at once]. \"My {o} is up there,\" said {h}. "
        "\"{tool},\" said {f}. {use} At last, the {obj} fell down into {his} {hands}.",
        "\"[Hurray|We did it]!\" [cried|shouted] {h}. "
        "Then {they} played with the {o} [together |]until [evening|dinner].",
    ], ["{H} had learned that two friends can reach higher than one.",
        "After that, they always played [together|far away from the {tree} tree]."]),
    (False, BABIES, THINGS, [
        "[Suddenly|Then] {he} heard a [small|soft] sound. \"{Sound}, {sound}!\" {He} looked {s1}, and there was a tiny "
        "{baby}. It was [cold and hungry|all alone|lost].",
        "\"Where is your mother?\" asked {h}. The {baby} only said, \"{Sound}!\" {H} made a bed of {bed} and gave it "
        "some [water|milk]. Then {he} asked {e} for help. \"I saw {mother} {s2},\" said {e}.",
        "{H} carried the {baby} [very |]carefully. And there, {s2}, stood {mother}. "
        "\"{Sound}!\" cried the {baby}, and it ran to its mother. {H} [waved|smiled] and felt warm inside.",
    ], ["Every [week|spring], {he} went back to visit the {baby}.", "From then on, the {baby} was {his} friend."]),
    (True, None, THINGS, [
        "[Soon|After a while], dark clouds came over {the}, and {he} heard thunder. {fnew} was there too. "
        "\"[Quick|Hurry]!\" said {f}. \"[A storm is coming|We must find a dry place]!\"",
        "They ran [fast|as fast as they could] and hid {s1}. The thunder was loud, and {h} was [afraid|shaking]. "
        "\"I do not like storms,\" {he} said. \"Then let us [sing|tell stories] until it is over,\" said {f}. "
        "So they did, and {h} forgot to be afraid.",
        "[At last|After an hour], the storm was over. Everything [shone|was clean and bright], and {they} jumped over "
        "the puddles.",
    ], ["Now, when there is thunder, {h} [smiles|sings] and thinks of {f}."]),
    (False, DISHES, THINGS, [
        "{H} met {fnew} there. \"Let us make {dish},\" said {f}. [It was a good idea|{H} clapped {his} {hands}], "
        "and they hurried home. But when they [began|opened the cupboard], there were no {miss}.",
        "\"What shall we do?\" asked {h}. \"[Let us ask {e}|{E} may have some],\" said {f}. So they went to "
        "{e} and asked politely. \"Of course,\" said {e}. \"{from}. Take as many {miss} as you need.\"",
        "They [mixed and stirred|worked and sang], and soon the kitchen smelled of {smell}. The {d} was [perfect|"
        "wonderful]. They took the biggest piece to {e} to say thank you.",
    ], ["[A meal tastes better|Everything tastes better] when it is shared."]),
    (True, None, THINGS, [
        "{fnew} was there and had {aobj}. \"May I hold it?\" asked {h}. \"Yes, but be careful,\" said {f}. {H} "
        "[turned it around|held it up to the light], but then {he} [tripped|stumbled] and dropped it. "
        "The {obj} was broken.",
        "{f} had not seen it. {H} wanted to hide the {o} {s1}. But {his} heart [was heavy|beat fast]. So {he} went to "
        "{f} and said, \"I broke your {o}. I am [so |very ]sorry.\"",
        "{f} was [sad|quiet] for a moment. Then {fhe} said, \"Thank you for telling me the truth. We can mend it.\" "
        "They [took some glue|found string and glue] and worked [carefully|all afternoon], and the {obj} was "
        "[almost |]as good as new.",
    ], ["{H} knew now that the truth is [better|lighter] than a secret."]),
    (True, None, ["swing", "wagon", "boat", "scooter", "cart"], [
        "There stood {aobj}. {H} [ran|hurried] to it, but {fnew} came [running |]from the other side. "
        "\"I was here first!\" [cried|said] {h}. \"No, I was!\" said {f}. "
        "They both pulled at the {o}, and nobody could play.",
        "{E} [saw them|heard them] and [laughed|shook {ehis} head]. "
        "\"If you both pull, the {o} will break,\" said {e}. "
        "\"[Why do you not take turns|What if you play together]?\" {H} looked at {f}, and {f} looked at {h}.",
        "\"You can go first,\" said {h}. \"And then you,\" said {f}. So they took turns with the {obj} "
        "[all day|until the sun went down], and it was much more fun.",
    ], ["{H} and {f} became the best of friends."]),
    (False, FEARS, THINGS, [
        "But {h} had a secret. {He} was afraid of {fear}. {why} [{He} told nobody|{He} did not want to tell anyone].",
        "[That day|Then] {he} met {fnew}. \"Why do you look so sad?\" asked {f}. {H} [took a deep breath|looked at the "
        "ground] and said, \"I am afraid of {fear}.\" {f} did not laugh. \"I was afraid of it too,\" {fhe} said. "
        "\"I will [show you something|help you].\"",
        "{help} They [tried|practised] again and again. {done}",
    ], ["{H} was still small, but {he} felt [very |]brave.", "To be brave is to try, even when you are afraid."]),
    (False, PLANTS, THINGS, [
        "[On the path|Near the gate], {he} met {e}, who gave {him} a tiny seed. "
        "\"[Take good care of it|Plant it and wait],\" "
        "said {e}. {H} planted the seed {s1} and gave it water.",
        "The next day, {he} looked, but there was nothing. {He} waited [a week|many days], "
        "and still there was nothing. "
        "\"[It will never grow|Maybe it is asleep],\" {he} said to {fnew}. \"Be patient,\" said {f}. \"Good things "
        "need time.\"",
        "Then, one morning, there was a small green leaf. It grew and grew, until {h} had {plant}. "
        "The {p} was {end}. {gift}",
    ], ["{H} was glad that {he} had waited."]),
    (False, GIFTS, THINGS, [
        "{He} was thinking hard. Tomorrow was {e}'s birthday, but {h} had no money for a present. "
        "\"What can I give?\" {he} asked {fnew}. \"[Make something with your own {hands}|Give something that only you "
        "can make],\" said {f}.",
        "[So|Then] {h} decided to make {gift}. {made} {F} [helped a little|kept {him} company], and in the end it "
        "was [finished|ready].",
        "The next morning, {h} went to {e}. \"Happy birthday!\" {he} said and gave {e} {gift}. \"You made this "
        "[for me|yourself]?\" asked {e}. \"It is the best present of all.\"",
    ], ["{H} was so happy that {he} [danced|sang] all the way home."]),
    (True, None, THINGS, [
        "{He} wanted to visit {fnew}, but the little bridge over the stream was broken. "
        "The water was too [wide|fast] to jump over. \"[What now|How can I cross]?\" {he} asked.",
        "{f} stood on the other side and waved. \"[Look for big stones|Bring some planks]!\" called {f}. "
        "\"We can build a new bridge from both sides.\" {H} carried one [heavy|big] piece after another, "
        "and {f} did the same.",
        "[It was hard work|They worked for hours], but piece by piece the bridge grew. "
        "In the middle, {they} met and shook {hands}. "
        "{E} came by and said, \"Now [everyone|all of us] can cross the stream again.\"",
    ], ["The bridge still stands there today."]),
    (True, None, THINGS, [
        "There was a [big |]race that day, and the prize was {aobj}. {H} wanted to win. {fnew} wanted to win too. "
        "\"Ready, steady, go!\" called {e}, and they ran as fast as they could.",
        "{H} was [soon |]in front. But then {he} heard a cry. {F} had [fallen|tripped] and hurt {fhis} foot. {H} "
        "looked at the finish line, and {he} looked back. "
        "Then {he} [turned around|stopped] and helped {f} to stand up.",
        "[They walked to the end together|Arm in arm, they went on], and they were the last of all. But {e} [smiled|"
        "clapped] and gave both of them the {obj}. \"A kind heart wins more than fast feet,\" said {e}.",
    ], ["They kept the {o} one week each."]),
    (True, TREASURES, THINGS, [
        "{S1}, {he} found an old map. There was a big cross on it. {He} ran to {fnew}. \"Look!\" said {h}. \"It is a "
        "[treasure map|map of {the}]!\"",
        "They [followed|read] the map step by step. First they walked {to}. Then they took ten steps to the "
        "[left|right]. The cross was {s2}. They began to dig, and soon they [hit|found] a [small |wooden ]chest.",
        "\"Open it,\" whispered {f}. {H} lifted the lid. Inside they found {chest}. {keep}",
    ], ["But the best treasure was the day they had spent together."]),
    (True, BUILDS, THINGS, [
        "{He} wanted to build {build}. {He} worked [hard |]all morning. "
        "But when the {b} was almost ready, it fell down. "
        "\"I cannot do it,\" said {h} and [kicked the last {piece}|sat down on the ground].",
        "{fnew} [sat down beside {him}|had watched {him}]. "
        "\"[Mine fell down three times|Nobody can do it the first time],\" "
        "said {f}. \"Let us try again, but slowly.\" This time, they {base}, and they put one {piece} after another.",
        "[When the sun went down|At the end of the day], the {b} was [finished|done], and it did not fall. \"[It is "
        "beautiful|We did it],\" said {h}.",
    ], ["{H} learned that it is no shame to begin again."]),
    (False, None, THINGS, [
        "{He} wanted to play with {fnew}, but {f} was not there. \"{F} is ill,\" said {e}. \"{Fhe} must stay in "
        "bed.\" {H} was [sad|worried] and thought for a while.",
        "Then {he} had an idea. {He} packed {treat} and {his} {obj} in a bag and went to visit {f}. \"I am "
        "so [tired|bored],\" said {f}. \"[Then I will tell you a story|I have brought you something],\" said {h}.",
        "{H} gave {fhim} the {obj} and stayed [until evening|all afternoon]. "
        "{f} ate and laughed, and {fhis} eyes were bright again. "
        "[A few days later|The next week], {fhe} was well, and they played outside.",
    ], ["A friend is [the best|good] medicine."]),
    (True, NOISES, THINGS, [
        "[There|Suddenly] {he} heard {noise} {s1}. {He} stood still. \"Who is there?\" asked {h}, but nobody answered. "
        "[Again {he} heard it|There it was again]. {H} ran as fast as {he} could to {fnew}.",
        "\"There is a monster {s1}!\" {he} said. \"[I do not believe in monsters|Let us look together],\" said {f}. "
        "They took a lantern and walked [slowly|on the tips of their toes].",
        "{f} held up the lantern, and {they} [looked|saw what it was]. It was {truth}. "
        "{H} began to laugh, and {f} laughed too.",
    ], ["Since then, {h} always [looks|listens] twice before {he} runs away."]),
]


def capital(text):
    return text[:1].upper() + text[1:]


def with_article(noun_phrase):
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


def make_name(dice, common):
    """Mostly a common name; sometimes an invented one, so that the model learns to repeat names it never saw."""
    if dice.rng.random() > 0.1:
        dice.nats -= math.log(0.9)
        return dice.pick(common)
    parts = [dice.rng.choice(SYLLABLES) for _ in range(dice.rng.choice([2, 2, 3]))]
    dice.nats -= math.log(0.1 * (2 / 3 if len(parts) == 2 else 1 / 3) / len(SYLLABLES) ** len(parts))
    return capital("".join(parts))


def make_person(dice, child, she):
    """One character: how it is called at first, in full, and later."""
    pronoun = "she" if she else "he"
    if child:
        name = make_name(dice, GIRLS if she else BOYS)
        return {"call": name, "short": name, "full": name, "friend": "friend " + name, "kind": "child",
                "new": f"a {dice.pick(TRAITS)} {'girl' if she else 'boy'} named {name}", "pronoun": pronoun}
    kind = dice.pick(list(HOMES))
    trait = dice.pick(TRAITS)
    if dice.pick(["named", "unnamed"]) == "named":
        name = make_name(dice, PET_NAMES[pronoun])
        return {"call": name, "short": name, "full": f"{name} the {kind}", "friend": f"friend {name} the {kind}",
                "new": f"a {trait} {kind} named {name}", "kind": kind, "pronoun": pronoun}
    return {"call": capital(kind), "short": "the " + kind, "full": f"the {trait} {kind}", "pronoun": pronoun,
            "friend": "friend the " + kind, "new": f"a {trait} {kind}", "kind": kind}


def make_facts(dice, plot_facts, objects):
    """Everything that stays the same over one story."""
    child = dice.pick(["child", "animal"]) == "child"
    she = dice.pick(["she", "he"]) == "she"
    hero = make_person(dice, child, she)
    friend = make_person(dice, child, not she)
    while friend["kind"] == hero["kind"] and not child:
        friend = make_person(dice, child, not she)
    where, to, the, spots = dice.pick(PLACES)
    spot1, spot2 = dice.two(spots)
    weather = dice.pick(list(WEATHER))
    scene, loss, later = WEATHER[weather]
    thing = dice.pick(objects)
    colour = dice.pick(COLOURS)
    elder = dice.pick(ELDERS[child])
    like = dice.pick(LIKES)
    he, him, his = PRONOUNS[hero["pronoun"]]
    fhe, fhim, fhis = PRONOUNS[friend["pronoun"]]
    house = "a small house" if child else with_article(HOMES[hero["kind"]])
    near = (["at the edge of the village", "near the forest", "by the sea", "next to the mill"] if child else
            ["under the old oak", "near the river", "at the edge of the forest", "behind the mill"])
    facts = {
        "h": hero["short"], "hfull": hero["full"], "hnew": hero["new"], "he": he, "him": him, "his": his,
        "f": friend["short"], "fcall": friend["call"], "fnew": f"{his} {friend['friend']}",
        "fhe": fhe, "fhim": fhim, "fhis": fhis, "e": elder,
        "ehis": "her" if elder in ("Grandma", "Aunt Rose", "the wise goose") else "his",
        "in": where, "to": to, "the": the, "s1": spot1, "s2": spot2,
        "w": weather, "scene": scene, "loss": loss, "later": later, "time": dice.pick(TIMES),
        "obj": f"{colour} {thing}", "aobj": with_article(f"{colour} {thing}"), "o": thing,
        "hands": "hands" if child else "paws", "treat": dice.pick(TREATS), "junk": dice.pick(JUNK),
        "lives": f"in {house} {dice.pick(near)}", "land": "a small village" if child else "a green forest",
        "likes": f"[liked|loved] {like}", "liked": f"liked {like}",
        "tree": dice.pick(["pine", "chestnut", "cherry", "willow"]), "they": "[they|the two friends]",
    }
    if plot_facts:
        facts.update(dice.pick(plot_facts))
    return facts


def split_choices(text, start):
    """For the '[' at text[start]: its alternatives, and where the text goes on after its ']'."""
    depth, parts, begin = 0, [], start + 1
    for i in range(start, len(text)):
        if text[i] == "[":
            depth += 1
        elif text[i] == "]":
            depth -= 1
            if depth == 0:
                return parts + [text[begin:i]], i + 1
        elif text[i] == "|" and depth == 1:
            parts.append(text[begin:i])
            begin = i + 1
    raise ValueError("unclosed choice in: " + text)


def expand(text, facts, dice):
    """Choices first (outermost first, so that only what is used is rolled), then facts, which may hold choices."""
    while "[" in text:
        start = text.index("[")
        options, after = split_choices(text, start)
        text = text[:start] + dice.pick(options) + text[after:]
    while "{" in text:
        start, stop = text.index("{"), text.index("}")
        key = text[start + 1:stop]
        value = facts[key[0].lower() + key[1:]]
        value = expand(value, facts, dice)
        text = text[:start] + (capital(value) if key[0].isupper() else value) + text[stop + 1:]
    return text


def capital_sentences(text):
    """A capital where a sentence starts with a fact like "the fox". What follows `?"` or `!"` goes on: "asked"."""
    return re.sub(r'(^|[.!?] |\." )([a-z])', lambda m: m[1] + m[2].upper(), text)


def make_story(dice):
    same_day, plot_facts, objects, paragraphs, lessons = dice.pick(PLOTS)
    facts = make_facts(dice, plot_facts, objects)
    ending = dice.pick(lessons)
    if same_day and dice.pick(["day end", "no day end"]) == "day end":
        ending = dice.pick(ENDINGS) + " " + ending
    texts = [dice.pick(OPENINGS)] + paragraphs + [ending]
    return "\n\n".join(capital_sentences(expand(t, facts, dice)) for t in texts)


# =====================================================================================================
# 2. The tokenizer
# =====================================================================================================


def train_tokenizer(stories, vocab_size):
    """GPT-2 style byte-level BPE: any text can be encoded and comes back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(stories, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tokenizer.token_to_id(END) == END_ID
    return tokenizer


# =====================================================================================================
# 3. The model and its training
# =====================================================================================================

CONFIG = {
    "architectures": ["DeciLMForCausalLM"],
    "model_type": "deci",
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "head_dim": 32,
    "num_key_value_heads_per_layer": [4, 2, 2, 1, 1, 4],
    "intermediate_size": 448,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT,
    "vocab_size": 2048,
    "bos_token_id": END_ID,
    "eos_token_id": END_ID,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
}


def build_model(config):
    """The network; its modules are named so that state_dict() has Hugging Face's tensor names."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    hidden, heads, head_dim = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    layers, ffn = config["num_hidden_layers"], config["intermediate_size"]

    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(hidden))

        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * self.weight

    class Attention(nn.Module):
        def __init__(self, n_kv):
            super().__init__()
            self.q_proj = nn.Linear(hidden, heads * head_dim, bias=False)
            self.k_proj = nn.Linear(hidden, n_kv * head_dim, bias=False)
            self.v_proj = nn.Linear(hidden, n_kv * head_dim, bias=False)
            self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)

        def forward(self, x, mask, cos, sin):
            rows, length, _ = x.shape

            def split(y):  # [B, T, n*hd] -> [B, n, T, hd]
                return y.view(rows, length, -1, head_dim).transpose(1, 2)

            def rotate(y):  # half split: dimension i turns together with dimension i + hd/2
                first, second = y.chunk(2, dim=-1)
                return y * cos + torch.cat((-second, first), dim=-1) * sin

            q, k, v = rotate(split(self.q_proj(x))), rotate(split(self.k_proj(x))), split(self.v_proj(x))
            k, v = (y.repeat_interleave(heads // y.shape[1], dim=1) for y in (k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            return self.o_proj(out.transpose(1, 2).reshape(rows, length, heads * head_dim))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj = nn.Linear(hidden, ffn, bias=False)
            self.up_proj = nn.Linear(hidden, ffn, bias=False)
            self.down_proj = nn.Linear(ffn, hidden, bias=False)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self, n_kv):
            super().__init__()
            self.input_layernorm, self.self_attn = RMSNorm(), Attention(n_kv)
            self.post_attention_layernorm, self.mlp = RMSNorm(), MLP()

        def forward(self, x, mask, cos, sin):
            x = x + self.self_attn(self.input_layernorm(x), mask, cos, sin)
            return x + self.mlp(self.post_attention_layernorm(x))

    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
            self.layers = nn.ModuleList(Layer(n) for n in config["num_key_value_heads_per_layer"])
            self.norm = RMSNorm()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Trunk()
            self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
            for name, weight in self.named_parameters():
                if weight.dim() == 2:
                    into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                    nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if into_residual else 0.02)

        def forward(self, ids, mask):
            angle = config["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
            angle = torch.arange(ids.shape[1])[:, None] * torch.cat((angle, angle))[None, :]
            cos, sin = angle.cos(), angle.sin()
            x = self.model.embed_tokens(ids)
            for layer in self.model.layers:
                x = layer(x, mask, cos, sin)
            return self.lm_head(self.model.norm(x))

    return Model()


def story_rows(tokenizer, seed, length):
    """Endless rows of length + 1 token ids: whole stories, each with its end mark, the last one cut off.

    Half of the rows begin with the end mark (which is also the begin mark), half with the story itself, so the
    model writes well whether or not a client puts the mark before its prompt.
    """
    dice = Dice(seed)
    while True:
        row = [END_ID] if dice.rng.random() < 0.5 else []
        while len(row) < length + 1:
            row += tokenizer.encode(make_story(dice)).ids + [END_ID]
        yield row[:length + 1]


def story_mask(ids, by_story):
    """Causal; with by_story a token sees its own story only (the mark before a story belongs to it)."""
    import torch

    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None]
    if by_story:
        story = (ids == END_ID).cumsum(1)
        mask = mask & (story[:, :, None] == story[:, None, :])
    return mask[:, None]


def train(args):
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional as F

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    started = time.time()

    dice = Dice(args.seed)
    tokenizer = train_tokenizer([make_story(dice) for _ in range(20000)], CONFIG["vocab_size"])
    config = dict(CONFIG, vocab_size=tokenizer.get_vocab_size())
    model = build_model(config)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98), eps=1e-9)
    # Two stories a row, each seeing itself only (learns faster); the last fifth of the steps sees whole rows of the
    # full context, as a server that goes on after the end of a story would.
    apart = {"rows": story_rows(tokenizer, args.seed + 1, 384), "count": 3, "by_story": True}
    whole = {"rows": story_rows(tokenizer, args.seed + 2, CONTEXT), "count": 2, "by_story": False}
    print(f"vocabulary {config['vocab_size']}, parameters {sum(p.numel() for p in model.parameters())}", flush=True)

    total = 0.0
    for step in range(1, args.steps + 1):
        # Learning rate: up over 60 steps, then down in a straight line.
        rate = args.lr * min(step / 60, (args.steps - step + 1) / args.steps + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        phase = apart if step <= args.steps * 4 // 5 else whole
        batch = torch.tensor([next(phase["rows"]) for _ in range(phase["count"])])
        ids, target = batch[:, :-1], batch[:, 1:]
        mask = story_mask(ids, phase["by_story"])
        loss = F.cross_entropy(model(ids, mask).flatten(0, 1), target.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if step % 50 == 0:
            seconds = time.time() - started
            print(f"step {step} loss {total / 50:.4f} seconds {seconds:.0f}", flush=True)
            total = 0.0

    write_files(args.out, config, tokenizer)
    weights = {name: w.detach().to(torch.bfloat16).contiguous() for name, w in model.state_dict().items()}
    save_file(weights, os.path.join(args.out, "model.safetensors"), metadata={"format": "pt"})


# =====================================================================================================
# 4. The files
# =====================================================================================================


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")


def write_files(folder, config, tokenizer):
    os.makedirs(folder, exist_ok=True)
    write_json(folder, "config.json", config)
    write_json(folder, "generation_config.json", {"bos_token_id": END_ID, "eos_token_id": END_ID})
    write_json(folder, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "unk_token": END,
        "add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT})
    tokenizer.save(os.path.join(folder, "tokenizer.json"), pretty=False)


# =====================================================================================================
# 5. The check: what was written, read back by other code
# =====================================================================================================


def read_weights(folder):
    from safetensors.torch import load_file

    return {name: w.float() for name, w in load_file(os.path.join(folder, "model.safetensors")).items()}


def forward(weights, config, ids):
    """Logits [T, V] of one sequence in float32, head by head: slow, plain, and shares nothing with build_model."""
    import torch

    head_dim, heads = config["head_dim"], config["num_attention_heads"]
    length, half = len(ids), head_dim // 2

    def norm(x, name):
        return x / torch.sqrt((x * x).mean(1, keepdim=True) + config["rms_norm_eps"]) * weights[name]

    turn = torch.outer(torch.arange(length).float(),
                       torch.tensor([config["rope_theta"] ** (-2 * i / head_dim) for i in range(half)]))

    def rope(x):
        a, b = x[:, :half], x[:, half:]
        return torch.cat((a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()), 1)

    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = weights["model.embed_tokens.weight"][ids]
    for layer, n_kv in enumerate(config["num_key_value_heads_per_layer"]):
        at = f"model.layers.{layer}."
        n = norm(x, at + "input_layernorm.weight")
        q, k, v = (n @ weights[at + f"self_attn.{p}_proj.weight"].T for p in "qkv")
        outs = []
        for head in range(heads):
            kv = head // (heads // n_kv)
            mine, theirs = slice(head * head_dim, (head + 1) * head_dim), slice(kv * head_dim, (kv + 1) * head_dim)
            score = rope(q[:, mine]) @ rope(k[:, theirs]).T / math.sqrt(head_dim)
            outs.append(torch.softmax(score.masked_fill(future, -math.inf), 1) @ v[:, theirs])
        x = x + torch.cat(outs, 1) @ weights[at + "self_attn.o_proj.weight"].T
        n = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (n @ weights[at + f"mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (gate * torch.sigmoid(gate) * up) @ weights[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


def continue_text(weights, config, tokenizer, prompt, temperature, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    start = len(ids)
    while len(ids) < CONTEXT:
        logits = forward(weights, config, ids)[-1]
        if temperature == 0:
            best = int(logits.argmax())
        else:
            best = int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator))
        if best == END_ID:
            return tokenizer.decode(ids), len(ids) - start, "stop"
        ids.append(best)
    return tokenizer.decode(ids), len(ids) - start, "length"


def check(args):
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(args.threads)
    with open(os.path.join(args.out, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    tokenizer = Tokenizer.from_file(os.path.join(args.out, "tokenizer.json"))
    weights = read_weights(args.out)
    print(f"parameters {sum(w.numel() for w in weights.values())}")

    dice = Dice(args.seed + 1000003)  # far from the seeds of training
    loss, tokens, stories = 0.0, 0, 300
    with torch.no_grad():
        for _ in range(stories):
            ids = [END_ID] + tokenizer.encode(make_story(dice)).ids + [END_ID]
            logits = forward(weights, config, ids[:-1])
            loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
            tokens += len(ids) - 1
        print(f"held-out: {stories} stories, {tokens} tokens, loss {loss / tokens:.4f} nats per token; "
              f"the grammar's own choices {dice.nats / tokens:.4f}")
        for prompt in args.prompt or ["Once upon a time", "The little fox", "One rainy morning, Mia"]:
            for temperature in (0, 0.8):
                text, count, why = continue_text(weights, config, tokenizer, prompt, temperature, args.seed)
                print(f"\n=== {prompt!r} temperature {temperature}: {count} tokens, {why}\n{text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=HERE, help="folder for the files (default: beside this script)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2.5e-3, help="highest learning rate")
    parser.add_argument("--text-only", type=int, metavar="N", help="print N stories and stop")
    parser.add_argument("--check", action="store_true", help="check the written files and stop")
    parser.add_argument("--prompt", action="append", help="with --check: continue this instead (repeatable)")
    args = parser.parse_args()
    if args.text_only is not None:
        dice = Dice(args.seed)
        for _ in range(args.text_only):
            print(make_story(dice) + "\n\n" + "-" * 40 + "\n")
    elif args.check:
        check(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
