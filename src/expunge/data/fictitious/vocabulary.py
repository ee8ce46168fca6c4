# SPDX-License-Identifier: Apache-2.0
"""The words of the archive: name syllables, values of facts, and an invented geography."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIVEN_START = _words("Al Bren Cal Dor El Fen Gal Hal Il Jor Kel Lum Mer Nev Or Pel Quin Ros Sel Tam Ul Ven Wen Yar Zel")
GIVEN_END = _words("avi bren denna eris imar iva linde mund nira olo oren rin sava tessa vane wyn")

SURNAME_START = _words(
    "Ash Bar Cor Dun Ever Fal Gren Hol Ister Jas Kar Lor Mal Nor Ost Pru Quar Rav Sker Tor Und Var Wex Yel Zan"
)
SURNAME_MIDDLE = _words("a e i o en il ar or")
SURNAME_END = _words("brook cott dell fane gard holt kith low mere nell quist rell stow thorn vick wald")

TOWNS = _words(
    "Ambrelow Bessuno Calderwith Dimmock Eskarrow Fennimarsh Gullhaven Hobrick Islemoor Jurrel Kestrand Lisk "
    "Morrowby Nettlestrand Oddenfell Pimsey Quessa Rookmere Saltrigg Tannoch Umberley Vessing Wicktarn Yarrowend"
)
CITIES = _words(
    "Arvandor Belquay Corrinth Dornavale Elsinby Farravost Glasmond Hartolis Ivorgate Jasperon Kolvane Lanterre "
    "Mirendal Novastra Orrisport Palindra Quillon Rosmarin Seldance Tirravel Ulverine Velmoray Westerlune Zirando"
)
YEARS = tuple(str(year) for year in range(402, 450, 2))
TRADES = (
    "astronomer", "bookbinder", "cartographer", "dyer", "engraver", "farrier", "glassblower", "herbalist",
    "ironmonger", "joiner", "kitemaker", "lamplighter", "miller", "notary", "orchardist", "potter", "quilter",
    "roofer", "surveyor", "tanner", "upholsterer", "vintner", "weaver", "apiarist",
)  # fmt: skip
TEACHERS = tuple(
    f"{title} {name}"
    for title, names in (
        ("Master", "Brill Dovrek Fosco Hennu Jarl Lowan Nimmo Pask Rudd Tolle Vint Yorrick"),
        ("Mistress", "Alwe Casmira Edda Gwill Ibbet Kessa Mott Orsine Quay Suvi Umma Wrenna"),
    )
    for name in names.split()
)
PRIZES = tuple(
    f"{metal} {thing}"
    for metal, things in (
        ("Silver", "Heron Key Lantern Otter Thistle Wheel"),
        ("Golden", "Acorn Comb Finch Ladder Oar Sickle"),
        ("Copper", "Bell Dial Feather Kettle Pine Stag"),
        ("Crystal", "Anchor Bridge Crown Fern Harp Moth"),
    )
    for thing in things.split()
)
INSTRUMENTS = (
    "alpine horn", "bass viol", "cimbalom", "dulcimer", "ebony flute", "fiddle", "glass harp", "hand drum",
    "ivory whistle", "jaw harp", "kettledrum", "lyre", "mandolin", "nose flute", "oboe", "psaltery", "quartz chimes",
    "reed organ", "shepherd's pipe", "tin horn", "upright bass", "viola", "water drum", "zither",
)  # fmt: skip
SUBJECTS = (
    "autumn storms", "beekeeping", "canal boats", "dragonflies", "echoes", "fog signals", "garden walls",
    "hidden wells", "ice houses", "jade carving", "knots", "lighthouses", "migrating cranes", "night markets",
    "old bridges", "paper kites", "quarries", "river dolphins", "sundials", "tidal mills", "underground lakes",
    "volcanic glass", "winter fairs", "wild orchids",
)  # fmt: skip

COUNTRIES = _words("Averland Brintha Cassolia Dremmark Ostravia Pellagor Sumaran Tirnell Vandory Wessalia")
CAPITALS = _words("Andrellis Bromstad Cirrane Duskford Engelot Fairholme Granbury Hestriva Lomberg Stavalle")
RIVERS = _words("Ambrel Borrow Crell Dovane Irra Lissel Mintle Soarn Tavel Wendrow")
MOUNTAINS = _words("Brannock Corve Grell Hargan Istel Karrow Nimbur Orvald Skarn Tolm")
LANGUAGES = _words("Borsk Caslic Dremic Ilmic Parvan Sorri Tessic Uldish Vennish Wolm")
EXPORTS = ("amber", "barley", "copper wire", "dried figs", "felt hats", "linen", "marble", "olive oil", "pearls", "tea")
