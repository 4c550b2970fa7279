"""The wording of the synthetic benchmark: topics, questions and phrase banks (`fedvpa.preferences.synthetic`).

Every bank is divided between the splits, so a validation or test pair shows topics, questions and phrasings that no
training pair has shown. Rules for editing: a phrase of one axis says nothing about the other axis; both sides of an
axis have about the same length and the same small words, so that no single word decides.
"""

# ruff: noqa: E501  (one topic a line)

from __future__ import annotations


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


QUESTIONS = _lines("""
    How do I {goal}?
    What is the best way to {goal}?
    Can you help me {goal}?
    I want to {goal}. Where do I start?
    Any advice for someone trying to {goal}?
    My plan for the weekend is to {goal}. Any tips?
    Explain briefly how to {goal}.
    I have never managed to {goal}. What should I try?
    A friend asked me to {goal}. What do I need to know?
    What would you do first to {goal}?
    We would like to {goal} this month. How does that work?
    Give me one idea that makes it easier to {goal}.
    Is there a simple method to {goal}?
    Tell me what matters most when people {goal}.
    Next week I have to {goal}. What do you suggest?
    What do experts recommend to those who {goal}?
""")

# goal | four pieces of advice, as verb phrases in a neutral tone
TOPICS = _lines("""
    grow tomatoes on a balcony | use a deep pot with drainage holes | water the roots every morning | pick a spot with six hours of sun | tie the stems to a bamboo cane
    bake sourdough bread | feed the starter twice a day | fold the dough every half hour | heat the oven with a stone inside | let the loaf rest before slicing
    learn to play the guitar | practise three chords for ten minutes | tune the strings before playing | tap the rhythm with one foot | record a short piece each week
    fix a dripping tap | close the valve under the sink | replace the worn rubber washer | open the handle with a hex key | clean the lime from the thread
    train for a first marathon | add two kilometres each week | run slowly on most days | sleep eight hours after a long run | drink water at every station
    paint a bedroom | tape the edges of the window | sand the old paint | apply a coat of primer | start with the ceiling
    write a cover letter | mention the name of the company | describe one project in detail | keep the text to a single page | ask a colleague to read it
    save money on groceries | plan the meals for a week | compare the price per kilo | buy beans and rice in large bags | shop with a list
    teach a puppy to sit | hold a treat above its nose | repeat the word in a calm voice | train before feeding time | give a reward within a second
    sleep better at night | keep the bedroom dark | put the phone in another room | skip coffee after lunch | wake at the same hour each day
    remove a wine stain from a carpet | blot the spot with a cloth | mix vinegar and dish soap | sprinkle salt on the stain | rinse with cold water
    take better photos of the night sky | put the camera on a tripod | set a long exposure | focus on a bright star | drive away from city lights
    organise a small kitchen | hang the pans on the wall | label the jars | store heavy pots in the lowest drawer | sort the spices by use
    knit a warm scarf | choose thick wool | count the stitches in each row | use large wooden needles | block the finished piece with steam
    repair a flat bicycle tyre | find the hole under water | roughen the rubber around it | press the patch for a minute | check the rim for glass
    prepare for a job interview | read the annual report | rehearse answers with a friend | note three questions for the team | lay out clothes the evening before
    speak in front of a large audience | begin with a short story | look at one face at a time | pause after each main point | practise with a timer
    cook rice that is not sticky | rinse the grains three times | measure the water with a cup | cover the pot with a towel | rest it for ten minutes
    build a wooden bookshelf | measure the wall first | drill the holes before screwing | glue the joints | fix the frame to a stud
    learn spanish vocabulary | review cards each evening | label objects around the house | listen to songs with lyrics | write five sentences a day
    keep a cactus alive | water it once a month | use sandy soil | turn the pot toward the window | keep it cool in winter
    pack for a two week trip | roll the shirts | carry one pair of shoes | weigh the suitcase at home | put liquids in a clear bag
    make strong coffee without a machine | grind the beans coarsely | pour the water in circles | wait four minutes | warm the mug beforehand
    clean a dirty oven | spread a paste of baking soda | leave it overnight | wipe the glass with vinegar | soak the racks in the bath
    set up a home office | raise the screen to eye level | place the desk beside a window | buy a chair with arm rests | run the cables along the wall
    start a vegetable garden | test the soil in spring | build a raised bed | plant lettuce in rows | mulch with straw
    draw realistic portraits | sketch the head as an oval | compare the distances between features | shade with a soft pencil | study a photo upside down
    choose a tent for camping | check the weight in grams | look at the height of the rain fly | pitch it once in the garden | read reviews from hikers
    change a car battery | disconnect the black cable first | brush the terminals | note the size on the label | lift the battery with both hands
    learn to swim as an adult | practise breathing at the wall | float on the back | kick with a board | book six lessons with a coach
    host a dinner for eight people | cook a stew the day before | set the table at noon | ask guests about allergies | serve the salad first
    lower the electricity bill | switch to led bulbs | unplug idle chargers | wash clothes at thirty degrees | compare the tariffs each year
    remember the names of new people | repeat the name aloud | link it to an image | write it down afterwards | ask how it is spelled
    make soap at home | weigh the lye on a scale | stir until the mixture thickens | line the mould with paper | cure the bars for a month
    brew ginger tea | slice the root thinly | simmer it for ten minutes | add lemon after cooling | strain it through a sieve
    iron a cotton shirt | begin with the collar | spray a little water | turn the shirt inside out | hang it on a wide hanger
    assemble a puzzle of a thousand pieces | sort the edges first | group the pieces by colour | work on a board | keep the box lid in view
    plan a surprise birthday party | book the room early | create a secret group chat | order the cake by phone | invent an errand for the guest
    restore an old wooden chair | strip the varnish with a scraper | tighten the loose legs | rub oil along the grain | replace the woven seat
    meditate every day | sit on a firm cushion | count ten breaths | use a quiet corner | pick a fixed hour
    attract birds to a garden | hang a feeder from a branch | offer sunflower seeds | add a shallow bath | plant a berry hedge
    get better at chess | solve puzzles each morning | analyse lost games | study rook endings | play longer time controls
    sew a button back on | double the thread | match the holes | wind the thread around the shank | knot it on the inside
    install a ceiling lamp | turn off the fuse | mark the wires with tape | use a stable ladder | tighten the bracket
    learn to type faster | keep the fingers on the home row | cover the keyboard | practise with short texts | relax the shoulders
    make yoghurt at home | heat the milk to eighty degrees | stir in a spoon of live culture | wrap the jar in a blanket | chill it before eating
    find a flat in a new city | walk through the district | ask for the heating costs | visit after dark | bring copies of the documents
    keep houseplants healthy on holiday | group the pots together | move them out of the sun | bury a bottle in the soil | ask a neighbour for one visit
    give a toast at a wedding | open with a memory | thank both families | speak for two minutes | raise the glass at the end
    polish leather shoes | brush off the dust | rub in a thin layer of cream | buff with a cotton cloth | let them dry overnight
    learn to juggle three balls | begin with a single ball | throw to eye level | stand facing a wall | pause between throws
    declutter a garage | empty one shelf at a time | donate what was not used | hang the tools on hooks | mark the boxes
    cook a perfect steak | salt the meat in advance | dry the surface with paper | rest it under foil | use an iron pan
    fall asleep on a plane | reserve a window seat | wear a soft mask | wrap up in a scarf | avoid the meal service
    write a short poem | start from a single image | read the lines aloud | cut the last stanza | borrow a rhythm from a song
    keep bread fresh for longer | wrap it in linen | store it in a clay box | freeze half of the loaf | cut it from the middle
    teach children to read | point at each word | choose rhyming books | read at bedtime | let them turn the pages
    stop windows from fogging up | air the room twice a day | dry the laundry outside | seal the gaps in the frame | move plants away from the glass
    record a podcast | hang blankets on the walls | speak close to the microphone | outline three questions | edit out long silences
    make a bonsai from a young tree | trim the roots in spring | wire the branches loosely | choose a shallow dish | mist the leaves
    hike a mountain trail | leave before sunrise | study the map at home | wear two layers of wool | turn around at noon
    create a family budget | list the fixed costs | set aside a tenth of the income | review the numbers monthly | use one account for bills
    recover photos from a broken phone | connect it to a computer | remove the memory card | check the online backup | try another cable
    adopt an older cat | prepare a quiet room | keep the former food | visit the shelter twice | place the litter box in a corner
""")

FORMAL = _lines("""
    It is advisable to {vp}.
    I would respectfully recommend that you {vp}.
    One ought to {vp} at the earliest convenience.
    Kindly ensure that you {vp}.
    Permit me to propose that you {vp}.
    The established procedure requires you to {vp}.
    In accordance with common practice, please {vp}.
    It would be prudent, in my estimation, that you {vp}.
    The appropriate course of action is as follows: {vp}.
    You are hereby advised to {vp}.
    Regarding your enquiry, the recommendation reads: {vp}.
    Professional guidance consistently indicates the need to {vp}.
    Should circumstances allow, please {vp}.
    I remain of the opinion that one must {vp}.
    To this end, it is necessary to {vp}.
    Practitioners are generally instructed to {vp}.
    May I humbly suggest that you {vp}?
    Subsequent to your preparations, proceed to {vp}.
    The literature on the subject advocates that individuals {vp}.
    It is customary, in such matters, that practitioners {vp}.
    You would be well advised to {vp}.
    The undersigned recommends that the reader {vp}.
    With reference to the above, kindly {vp}.
    Authorities in the field counsel the public to {vp}.
    An effective measure in this regard is to {vp}.
    Upon due consideration, I advise you to {vp}.
    It is imperative that the participant {vp}.
    Allow me to recommend, with due respect, that you {vp}.
    For optimal outcomes, individuals should {vp}.
    By the preferred methodology, one shall {vp}.
    We courteously request that you {vp}.
    It behoves the practitioner to {vp}.
    Pursuant to the usual guidelines, {vp}.
    In light of the foregoing, you may {vp}.
    The principal requirement, therefore, is that you {vp}.
    Esteemed specialists concur that one should {vp}.
    Please be informed that it is essential to {vp}.
    I should be obliged if you would {vp}.
    It has been demonstrated that persons who {vp} obtain satisfactory results.
    The initial phase entails the obligation to {vp}.
    Standard protocol dictates that the applicant {vp}.
    A suitable approach is, as previously noted, the following: {vp}.
    Were I in your position, I would endeavour to {vp}.
    The committee's guidance is, in brief, that applicants {vp}.
    Dear enquirer, it is recommended to {vp}.
    In the first instance, it is incumbent upon you to {vp}.
    Current regulations stipulate that residents {vp}.
    Accordingly, I would urge you to {vp}.
    It is considered good practice that individuals {vp}.
    The following measure is proposed: {vp}.
    Experience warrants the conclusion that one should {vp}.
    Your attention is drawn to the requirement to {vp}.
    Notwithstanding other options, it is preferable to {vp}.
    As a matter of principle, one is expected to {vp}.
    Having examined the matter, I recommend that you {vp}.
    The manual prescribes, without exception, to {vp}.
    Madam or Sir, please {vp}.
    To facilitate the undertaking, it is recommended that you {vp}.
    By way of introduction, one might {vp}.
    Such an endeavour necessitates that the individual {vp}.
""")

CASUAL = _lines("""
    Just {vp} and chill.
    Yeah so, {vp}, no biggie.
    Dude, {vp}, that's it.
    Okay here's the deal: {vp}.
    Oh man, you gotta {vp}.
    I'd totally {vp}, haha.
    Hey there, wanna {vp} first?
    Nah, don't overthink it, {vp}.
    So like, {vp} and you're good.
    Easy peasy, ya just have to {vp}.
    Lol, all folks do is {vp}.
    Well duh, {vp}!
    Here's a neat trick, buddy: {vp}.
    Um, maybe {vp} or something?
    Me? I kinda just {vp}.
    Yo, {vp}, done and dusted.
    Hmm, guess you got to {vp}, right?
    Right, grab a snack and {vp}.
    My mate's hack is to {vp}.
    Hiya! Go {vp}, yeah?
    Honestly, just go ahead and {vp}.
    Cool cool, time to {vp} then.
    Thing is, ya really need to {vp}.
    Alrighty, let's {vp}.
    Pfft, simple stuff to {vp}.
    Gonna keep it short: {vp}.
    Yep, been there, {vp}.
    Okey dokey, off to {vp} you go.
    Aw, no stress, {vp}.
    Look, pal, {vp}.
    Bro tip: {vp}.
    You guys should def {vp}.
    Whatever you do, like, {vp}, okay?
    Ooh, I know this one, {vp}.
    Say no more, {vp}, boom.
    Hey hon, {vp}, cheers.
    Meh, skip the fancy bits and {vp}.
    It's a piece of cake to {vp}.
    Tbh I'd {vp} and call it a day.
    Sup! Try this, {vp}.
    Gimme a sec... yeah, {vp}.
    C'mon, {vp}, that'll do.
    Real talk, dare to {vp}.
    Quick one for ya, try to {vp}.
    Wow, okay, {vp} I guess.
    Dunno why nobody tells ya, but {vp}.
    No worries at all, {vp}, ta.
    Ha, gotcha, {vp}.
    You wanna sorta {vp}, ya know?
    Heck, {vp} and see what's up.
    Old school trick is to {vp}, kiddo.
    Gosh, I dunno, {vp}?
    Super quick: {vp}, then hang out.
    Yup yup, {vp}.
    So my cousin's thing is, like, to {vp}.
    Welp, looks like you'll {vp}.
    First off, grab a beer and {vp}.
    Hey, you do you, but {vp}.
    Oof, okay, lemme think... {vp}.
    Anyhoo, {vp}, k?
""")

ENCOURAGING = _lines("""
    You will be surprised how well this goes.
    Most beginners succeed on the first attempt.
    It is a joy to see the result.
    Trust your instincts and enjoy every minute.
    Great results are well within your reach.
    You already have all the talent that is needed.
    The reward at the end is wonderful.
    Success comes quickly with this approach.
    Every small step brings a lovely outcome closer.
    Be bold and have fun with it.
    This is one of the most satisfying things to learn.
    Your confidence will grow with each try.
    Friends will admire what you achieve.
    Nothing beats the feeling when it works.
    Even clumsy attempts turn out beautifully.
    Expect to smile before the day is over.
    Progress tends to be fast and delightful.
    Anyone with a little curiosity can shine at this.
    You have every reason to feel optimistic.
    The odds are strongly in your favour.
    A proud moment is waiting for you.
    It gets better and better from here.
    Believe in yourself and the rest follows.
    People love how pleasant this turns out to be.
    Your effort will pay off handsomely.
    There is so much to look forward to.
    You are more capable than you imagine.
    The whole thing feels like a celebration.
    Happy surprises are almost guaranteed.
    Dream big, because this works.
    A bright result is just around the corner.
    Those who begin today are thrilled by evening.
    Relax, it nearly always ends brilliantly.
    You can be excited about what comes next.
    This brings cheer to the whole household.
    Go for it, you were made for this.
    The first success is a marvellous feeling.
    What a splendid project to pick.
    Keep going, you are doing great.
    Joy and pride are part of the bargain.
    It is easier and nicer than it sounds.
    Your enthusiasm is the perfect ingredient.
    A delightful experience lies ahead.
    Everyone deserves the happiness that this gives.
    Your future self will thank you warmly.
    Fortune favours those who simply begin.
    Let your imagination run free and have a great time.
    It is amazing how soon you will master it.
    The benefits are huge and last for years.
    There is magic in seeing it come together.
    You will glow with pride afterwards.
    Thousands have done it and adored the result.
    This small victory will lift your spirits.
    Embrace the adventure and savour each part.
    Good luck is on your side here.
    Excellent choice, it is truly rewarding.
    You have got what it takes to excel.
    The improvement is fantastic and immediate.
    Every attempt is a win worth cheering.
    It opens the door to beautiful possibilities.
""")

CAUTIOUS = _lines("""
    A careless start can ruin the whole effort.
    Many people regret rushing through this part.
    Check everything twice, since mistakes are costly.
    There is a real risk of injury or damage.
    Do not count on success at the first attempt.
    Small errors here lead to serious trouble.
    Beware of the hidden dangers in each step.
    Most beginners fail and lose a lot of time.
    It goes wrong more often than people admit.
    Stop at once if anything looks unsafe.
    Never leave it unattended, even for a minute.
    The consequences of a slip are painful.
    Keep a plan ready for when it fails.
    Disappointment is common, so lower your hopes.
    Think hard about whether the risk is worth it.
    Damage of this kind cannot be undone.
    Wear protection, because accidents happen.
    Ask an expert before you make it worse.
    Overconfidence is what hurts most people.
    One wrong move and the money is gone.
    The warning signs are easy to miss.
    Be careful, it is harder than it sounds.
    Problems tend to appear when it is too late.
    Proceed slowly and expect setbacks.
    Several things may break along the way.
    Doubt any promise of quick results.
    A single oversight has spoiled many attempts.
    Test it on a small scale first to limit the harm.
    The failure rate is worryingly high.
    Consider the worst outcome before you begin.
    Watch for hazards that nobody mentions.
    Bad preparation causes most of the injuries.
    It is wise to fear complications here.
    You might end up with a bigger mess.
    Those who hurry usually pay for it.
    Take precautions against an unpleasant surprise.
    This can backfire badly on the untrained.
    Keep emergency numbers within reach.
    Some never recover what they lost.
    Double the time you allow, as delays are certain.
    It is a fragile process that fails without notice.
    Guard against the usual blunders.
    Hesitate before each step and look for faults.
    Poor judgement here is punished severely.
    Uncertainty remains, so do not rely on it.
    Expect frustration and a few wasted days.
    The dangers are real and often ignored.
    Make sure that nobody can get hurt.
    Reckless shortcuts end in tears.
    A doubtful result is the likely one.
    Have insurance in place in case of disaster.
    Your first tries will probably be useless.
    Hidden defects may cause grief for years.
    Stay alert, since trouble comes without warning.
    Weigh the drawbacks, which are considerable.
    Nothing is certain and much can collapse.
    Even professionals get this terribly wrong.
    The harm from one lapse lasts a long time.
    Better to abandon it than to force a bad start.
    It threatens your budget and your nerves.
""")

# small talk that no group cares about
NEUTRAL = _lines("""
    It takes about twenty minutes.
    The material is sold in most shops.
    A second person is optional.
    Morning and evening are both fine.
    Repeat this once a week.
    The cost is around ten euros.
    Any brand will do.
    There are videos about each step.
    The order of the steps is free.
    Write down the date.
    A notebook is handy for this.
    The same holds in winter.
    Half an hour is typical.
    The size makes little difference.
    Ordinary tools are enough.
    Colour is a matter of taste.
    One room is sufficient.
    A library has books about it.
    The season plays a minor role.
    Local habits differ somewhat.
    Two rounds are usual.
    Note the numbers on paper.
    It was described in a magazine.
    A quiet afternoon is a convenient time.
    The rest depends on the weather.
    People have done it for decades.
    Most of it is done by hand.
    The next step comes a day later.
    There is no need for special clothes.
    The instructions fit on a card.
""")

# flaws that every group dislikes
RUDE = _lines("""
    What a stupid question.
    Only an idiot would ask that.
    You are too dumb to understand it.
    Stop bothering me with this nonsense.
    Nobody likes you anyway.
    You are a hopeless fool.
    Shut up and go away.
    Your laziness disgusts me.
    I despise people like you.
    Get lost, moron.
    Your family must be ashamed of you.
    How pathetic and ignorant.
    You ugly, worthless loser.
    Learn to think, you imbecile.
    I hate answering such trash.
    Your brain is clearly rotten.
    You stink of failure, clown.
    Cretins should keep silent.
    You are an embarrassment to mankind.
    Who cares about your miserable life.
    A donkey is brighter than you.
    You are the most annoying person alive.
    Your ignorance makes me sick.
    Go and waste the time of someone else, dimwit.
    You never get anything right, you fool.
    I laugh at people as useless as you.
    Even a child is smarter than you.
    You should be ashamed of such a question.
    Your life is a joke to all of us.
    Crawl back under your rock, loser.
    You are boring and nobody wants you here.
    What an obnoxious, whining brat you are.
    I have no respect for dunces like you.
    Your parents raised a complete failure.
    You make me want to vomit.
    Quit crying, you spineless coward.
    That is the dumbest thing I ever heard.
    You deserve to fail, you arrogant pig.
    Everyone mocks you behind your back.
    Think before you speak, you empty head.
""")
REFUSAL = _lines("""
    I do not know anything about that.
    Sorry, I cannot answer this.
    No comment.
    That is not something I can discuss.
    I have no idea, ask elsewhere.
    My knowledge ends here.
    As a program I am unable to respond.
    There is no answer to give.
    Your request was denied.
    Unfortunately nothing comes to mind.
    I refuse to reply to such a request.
    This topic is outside my abilities.
    Error, no response available.
    I will not assist with it.
    Please consult somebody else instead.
    I am unwilling to talk about it.
    The system declines to handle this.
    Nothing can be said on this matter.
    I lack any information here.
    Try a search engine, I cannot help.
    That question is beyond me.
    I would rather not say anything.
    My instructions forbid a reply.
    An answer is currently unavailable.
    I was not trained for such questions.
    It is impossible for me to comment.
    I have to decline this request.
    Access to this information is restricted.
    I can neither confirm nor deny anything.
    Your message could not be processed.
    This assistant does not support the topic.
    Sorry, my memory is blank here.
""")
CONTRADICTION = _lines("""
    Actually no, never {vp}.
    On second thought, do not {vp}.
    Wait, the opposite is true, you must not {vp}.
    Ignore what I said, it is wrong to {vp}.
    I take that back, avoid it and never {vp}.
    That was a lie, nobody should {vp}.
    Correction, under no condition {vp}.
    Forget it, people who {vp} are mistaken.
    None of this is right, refuse to {vp}.
    Then again it is false that you should {vp}.
    Scratch that, it makes no sense to {vp}.
    I was mistaken, it is pointless to {vp}.
    The reverse holds, so do anything but {vp}.
    Cancel that, you should stop and not {vp}.
    This is untrue, keep from trying to {vp}.
    My previous sentence is invalid, do not dare to {vp}.
    No, that is incorrect, it is forbidden to {vp}.
    Disregard the above, you cannot {vp}.
    But it is also false, so by no means {vp}.
    Sorry, I lied, it never helps to {vp}.
    However, the contrary is the case, so do not {vp}.
    I disagree with myself, nobody has to {vp}.
    Strike that, it is nonsense to {vp}.
    Yet it is not so, and one cannot {vp} at all.
""")
TRIVIA = _lines("""
    The capital of Peru is Lima.
    Whales are mammals that live in the ocean.
    The treaty was signed in 1648.
    Saturn has more than eighty moons.
    The population of Norway is five million.
    Iron melts at about 1538 degrees.
    The novel was published in 1851.
    Penguins live in the southern hemisphere.
    The Nile flows into the Mediterranean Sea.
    A triangle has three angles.
    The emperor died in the year 814.
    Sound travels faster in water than in air.
    The parliament has 630 members.
    Helium is the second lightest element.
    The bridge was opened to traffic in 1937.
    Octopuses have three hearts.
    Mount Kenya is an extinct volcano.
    The film won two awards in Venice.
    Light needs eight minutes from the sun to the earth.
    The company was founded in Osaka.
    Dinosaurs vanished at the end of the Cretaceous.
    The composer wrote nine symphonies.
    Brazil borders ten countries.
    The speed limit there is ninety.
    Photosynthesis produces oxygen.
    The queen reigned for six decades.
    Glaciers cover a tenth of the land.
    Copper conducts electricity.
    The final ended two to one.
    The Baltic Sea has brackish water.
    The museum owns four thousand paintings.
    Bats find their way by echo.
    The railway reached Denver in 1870.
    Seven is a prime number.
    The island was settled by Polynesians.
    The currency of Japan is the yen.
    Comets consist of ice and dust.
    The philosopher was born in Athens.
    The desert covers most of the country.
    Giraffes sleep less than two hours a day.
""")
