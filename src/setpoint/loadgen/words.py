"""Common English words that most tokenizers hold as one token each, with and without a space before them."""

_TEXT = """
able about above across act add after again age ago air all also always am among an and animal another answer any are
area arm art as ask at away back bad ball bank base be because become bed been before began best better between big
bird black blood blue board boat body book born both box boy bring brother build business but buy by call came can car
care carry case cause center certain chance change child church city class clear close cold color come common company
complete control cost could country course cover cross cut dark data day dead deal death deep did die different do
doctor dog door down draw drive drop dry during each early earth east easy eat end enough even event ever every
example experience eye face fact fall family far fast father feel feet few field fight figure fill final find fine
fire first fish five floor fly follow food foot for force form found four free friend from front full game gave get
girl give glass go gold good got government great green ground group grow had half hand happen hard has have he head
hear heart heat help her here high him his history hold home hope horse hot hour house how human hundred idea if image
in inside interest into is island it job just keep kind king knew know land language large last late law lay lead
learn leave led left less let letter level life light like line list little live local long look lost lot love low
machine made main make man many map mark market material may me mean measure men might mile mind minute miss money
month moon more morning most mother mountain move much music must my name nation nature near need never new next night
no north not note nothing notice now number object of off office often oil old on once one only open or order other
our out over own page paper part party pass past people period person picture piece place plan plant play point poor
position possible power present problem process produce product program public pull push put question quick race rain
ran range rate read real reason record red remain rest result rich right river road rock room round rule run said same
saw say school science sea second section see seem sell send sense series serve set seven several shape she ship short
should show side simple since sing single sit six size skin sleep small snow so social some son song soon sound south
space speak special stand star start state stay step still stone stop store story street strong student study such sun
sure surface system table take talk tax teacher team tell ten test than that the their them then there these they
thing think this those though thought three through time to today together told too took top total toward town trade
travel tree trouble true try turn two type under unit until up us use value very view visit voice wait walk wall want
war warm was watch water way we weather week weight well went were west what wheel when where which while white who
whole why wide wife will wind window winter with within without woman word work world would write wrong year yes yet
you young your
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
