"""Words that PTB tokenisation treats in their own way.

Found by giving the tokenizer of pycocoevalcap every sequence of up to five letters, and longer words that came to mind.
"""

from __future__ import annotations

ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf
    cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga
    gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn
    mlle mme mo mon mont mr mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt rd rep reps
    rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs
    vt wed wis wisc wm wyo
"""  # keep their full stop

ABBREVIATIONS_NOT_IN_CAPITALS = """
    mfg Mfg mtg Mtg ppte Ppte pptes Pptes ppty Ppty pptys Pptys pte Pte ptes Ptes pty Pty ptys Ptys
"""  # the same, in just these spellings
ABBREVIATIONS_WITH_A_CAPITAL = "ark az del ill la mass miss ore pa tex wash"  # the same, but for "mass."
ABBREVIATIONS_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"  # the same, if a digit follows: "no. 5"

SENTENCE_STARTERS = """
    a about according additionally after an as at but earlier he her here however if in it last many more now once one
    other our she since so some such that the their then there these they this we what when while yet you mr[.] ms[.]
"""  # after these, a single letter and a full stop are two tokens: "plan B. The dog"

APOSTROPHE_WORDS = "c'est c'mon cap'n li'l nat'l s'mores"  # not divided, further to those that follow a rule

DOUBLE_WORDS = (
    "can not",
    "gim me",
    "gon na",
    "got ta",
    "lem me",
    "wan na",
)  # written as one word, two tokens

FILE_SUFFIXES = """
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql
    tar txt wav x xml zip
"""  # after digits too: "5.jpg" is one token
