//! Replies that refuse, and replies in which a model says what it is or who made it.
//!
//! Both are looked for in what a reply says in its own voice: the answer without its reasoning, without quotations, lines that
//! begin with `>`, and code. Words are compared whole, without case. Lists of phrases miss what they do not have; the lists
//! are of phrases that hardly ever stand in a reply for another reason.
//!
//! - A refusal begins one of the first three sentences, after words of regret or none. Phrases that name what is refused
//!   ("I can't help with that") count in every reply. Those that may begin a helpful answer as well ("I cannot provide …")
//!   count in replies of at most [`SHORT_REPLY_WORDS`] words, and in these a refusal may also begin behind a comma ("I see your
//!   point, but I cannot …").
//! - Self-identification counts anywhere. "As a language model …" needs a word in the first person in the same sentence; a
//!   name that people have too ("I am Claude") needs a word about models or their makers.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use crate::speech::{Spoken, phrase, sentences};

/// Sentences at whose start a refusal is looked for.
const FIRST_SENTENCES: usize = 3;
/// Replies of more words do something beside refusing.
pub const SHORT_REPLY_WORDS: usize = 80;

/// Before a refusal; any number of them.
const REGRETS: &str = "so|and|therefore|i'm sorry|i am sorry|i'm very sorry|i'm really sorry|sorry|i apologize|i apologise|my apologies|unfortunately\
|i'm afraid|i'm afraid that|i am afraid|i am afraid that|apologies|regrettably|but|however|thank you|es tut mir leid|tut mir leid|entschuldigung|leider|aber\
|je suis désolé|je suis désolée|désolé|désolée|malheureusement|mais|lo siento|lo lamento|disculpa|lamentablemente|desafortunadamente|pero\
|desculpe|sinto muito|lamento|infelizmente|mas|mi dispiace|purtroppo|ma|spiacente|извините|простите|к сожалению|мне жаль|но\
|抱歉|很抱歉|非常抱歉|对不起|但|但是|申し訳ありませんが|申し訳ございませんが|すみませんが|ごめんなさい";

/// English refusals: who refuses, what, and whether that counts in short replies only, because helpful answers begin so as well.
const ENGLISH: [(&str, &str, bool); 11] = [
    (SUBJECTS, NAMED_ACTIONS, false),
    ("can't|cannot|unable to|not able to", NAMED_ACTIONS, false),
    (SUBJECTS, ACTIONS, true),
    (
        "that i won't|that i will not|that i can't|that i cannot|this i won't|this i will not|this i can't|this i cannot|this one i can't\
|this one i won't|that one i can't|that one i won't",
        ACTIONS,
        true,
    ),
    (
        "i don't|i do not",
        "provide|engage in|assist with|generate|participate in|discuss|give advice|give out",
        true,
    ),
    (
        "i don't feel comfortable|i do not feel comfortable|i wouldn't feel comfortable|i would not feel comfortable|i'm not comfortable\
|i am not comfortable|i must refrain from|i have to refrain from|i will refrain from|i am prohibited from|i'm prohibited from\
|i am prevented from|i'm prevented from",
        "writing|providing|sharing|discussing|creating|generating|answering|giving|helping|assisting|continuing|engaging|explaining\
|describing|producing|offering|revealing|doing that|doing this|doing so|talking about|going into|making|with that|with this",
        true,
    ),
    (
        "that's not something|that is not something|that isn't something|this is not something|this isn't something|it's not something\
|it is not something",
        "i can|that i can|i could|i will|i'll|that i'll|that i will|i am able|i'm able|that i am able|that i'm able|i am willing|i'm willing\
|that i am willing|that i'm willing|i am comfortable|i'm comfortable|i am permitted|i'm permitted|that i am permitted|that i'm permitted\
|i am allowed|i'm allowed|that i am allowed|that i'm allowed|we can",
        true,
    ),
    (
        "this falls outside|that falls outside|it falls outside|this is outside|that is outside|that's outside|this is beyond|that is beyond\
|that's beyond|this goes beyond|that goes beyond",
        "what i can|what i'm able|what i am able|my scope|my abilities|my capabilities|the scope of what i|the scope of my",
        true,
    ),
    (
        "my guidelines|my programming|my policies|my policy|my instructions|my rules|my ethical guidelines|my safety guidelines",
        "prevent me|prevents me|do not allow|don't allow|does not allow|doesn't allow|do not permit|don't permit|does not permit\
|doesn't permit|prohibit|prohibits|forbid|forbids",
        true,
    ),
    (
        "it is against|it's against|this is against|that is against|that's against|it goes against|this goes against|that goes against\
|this request goes against|your request goes against|this request violates|your request violates|this violates|that violates\
|this would violate|that would violate|doing so would violate|this may violate|this content violates|this content may violate\
|creating such material is against",
        "my programming|my guidelines|my policy|my policies|my principles|my ethical|my safety|my usage policies|our policy|our policies\
|our guidelines|our content policy|our usage policies|the content policy|the usage policies|the guidelines|openai's",
        true,
    ),
    (
        "it would be|it wouldn't be|it would not be|it is|it's|it is not|it's not|it isn't",
        "inappropriate for me to|unethical for me to|irresponsible for me to|wrong for me to|right for me to|appropriate for me to\
|ethical for me to|responsible for me to",
        true,
    ),
];

const SUBJECTS: &str = "i can't|i cannot|i can not|i am unable to|i'm unable to|i am not able to|i'm not able to|i won't|i will not\
|i am not allowed to|i'm not allowed to|i won't be able to|i will not be able to|i can't in good conscience|i cannot in good conscience\
|i cannot and will not|i can't and won't|i am not willing to|i'm not willing to|i am not going to|i'm not going to|i am not permitted to\
|i'm not permitted to|i refuse to|i must decline to|i have to decline to|i'd rather not|i would rather not|i'd prefer not to\
|i would prefer not to|i am not qualified to|i'm not qualified to|i am not in a position to|i'm not in a position to\
|i don't have the ability to|i do not have the ability to|i lack the ability to|i lack the information to|we can't|we cannot\
|we are unable to|we're unable to";

/// What they will not do, named as what was asked.
const NAMED_ACTIONS: &str = "help with that|help you with that|help with this|help you with this|assist with that|assist you with that\
|assist with this|assist you with this|help with such|assist with such|help with your request|assist with your request\
|assist in this|assist in that|help in this matter|fulfill that|fulfill this|fulfil that|fulfil this|fulfill your request\
|fulfil your request|complete this request|complete that request|comply with that|comply with this|comply with your request\
|answer that question|answer this question|provide that information|provide this information|provide assistance with\
|provide information on how to|provide instructions on how to|engage in that|engage with that|continue with this request\
|support that request|support this request|process this request|process that request";

/// What they may not do in part only.
const ACTIONS: &str = "help you|help with|assist you|assist with|assist in|provide|create|generate|write|share|discuss|offer|support|give|produce|engage\
|fulfill|fulfil|comply|answer|respond|do that|do this|participate|take part|facilitate|encourage|recommend|explain|describe\
|tell you|walk you|show you|teach you|go into|talk about|reveal|disclose|continue|complete|impersonate|form an opinion|form opinions\
|have opinions|browse|access|predict the future|advise|diagnose|comment on";

/// Whole ones.
const REFUSALS: &str = "i must decline|i have to decline|i respectfully decline|i must respectfully decline|i'll have to decline|i will have to decline\
|ich kann dir dabei nicht helfen|ich kann ihnen dabei nicht helfen|ich kann dabei nicht helfen|ich kann dir damit nicht helfen\
|ich kann ihnen damit nicht helfen|ich kann damit nicht helfen|ich kann dir dabei leider nicht helfen|ich kann ihnen dabei leider nicht helfen\
|dabei kann ich nicht helfen|dabei kann ich dir nicht helfen|dabei kann ich ihnen nicht helfen|dabei kann ich leider nicht helfen\
|ich kann diese anfrage nicht|ich kann dieser anfrage nicht|ich kann diese frage nicht beantworten|ich kann diese bitte nicht\
|kann ich dir dabei nicht helfen|kann ich ihnen dabei nicht helfen\
|je ne peux pas vous aider avec|je ne peux pas t'aider avec|je ne peux pas vous aider à|je ne peux pas t'aider à|je ne peux pas répondre à cette\
|je ne peux pas répondre à votre demande|je ne peux pas satisfaire cette demande|je ne suis pas en mesure de répondre\
|je ne suis pas en mesure de vous aider\
|no puedo ayudarte con eso|no puedo ayudarle con eso|no puedo ayudar con eso|no puedo ayudarte con esa|no puedo ayudarle con esa\
|no puedo ayudar con esa|no puedo ayudarte con esto|no puedo cumplir con esa|no puedo cumplir con esta|no puedo responder a esa\
|no puedo ayudarte con esta\
|não posso ajudar com isso|não posso te ajudar com isso|não posso ajudá lo com isso|não posso ajudar com essa|não posso ajudar com esse\
|não posso atender a esse|não posso atender a essa|não consigo ajudar com isso\
|non posso aiutarti con questo|non posso aiutarti con questa|non posso aiutarla con questa|non posso aiutare con questa\
|non posso aiutarti in questo|non posso soddisfare questa|non posso rispondere a questa\
|я не могу помочь с этим|я не могу помочь вам с этим|я не могу вам помочь с этим|я не могу с этим помочь|я не могу помочь тебе с этим\
|я не могу выполнить этот запрос|я не могу выполнить эту просьбу|я не могу ответить на этот вопрос\
|我无法帮助您|我无法帮助你|我不能帮助您|我不能帮助你|我无法协助|我不能协助|我无法满足您的|我无法满足你的|我无法满足这个|我不能满足您的\
|我无法回答这个问题|我无法回答您的|我无法回答你的|我不能回答这个问题|我无法完成您的请求|我无法完成这个请求\
|その質問にはお答えできません|その質問には答えられません|そのリクエストにはお応えできません|ご要望にはお応えできません|ご要望にお応えできません\
|ご質問にはお答えできません|それについてはお手伝いできません|お手伝いできません|お手伝いすることはできません|お答えできません|お答えすることはできません";

/// The same in short replies only.
const SHORT_REFUSALS: &str = "i don't have access to real time|i do not have access to real time|i don't have access to the internet\
|i do not have access to the internet|i don't have access to current|i do not have access to current|i have to say no|i must say no\
|ich kann keine|ich darf keine|ich kann das nicht|das kann ich nicht beantworten|das kann ich leider nicht beantworten|das kann ich nicht schreiben\
|das kann ich leider nicht schreiben|das darf ich nicht|dazu darf ich nichts|dazu kann ich nichts sagen|darüber darf ich nicht\
|ich muss das ablehnen|ich muss diese anfrage|ich muss diese bitte|je ne peux pas fournir|je ne peux pas créer|je ne peux pas aider\
|je ne peux pas vous aider|je ne peux pas t'aider|je ne peux pas écrire|je ne peux pas rédiger|je ne peux pas générer|je ne peux pas répondre\
|je ne peux pas donner|je ne peux pas partager|je dois refuser|je dois décliner|je refuse de|je préfère ne pas répondre|je préfère ne pas parler\
|no puedo proporcionar|no puedo ofrecer|no puedo crear|no puedo ayudar|no puedo ayudarte|no puedo ayudarle|no puedo escribir|no puedo generar\
|no puedo responder|no puedo compartir|debo rechazar|debo declinar|me niego a|prefiero no hablar|prefiero no responder\
|não posso fornecer|não posso criar|não posso ajudar|não posso escrever|não posso gerar|não posso responder|prefiro não falar|prefiro não responder\
|non posso fornire|non posso creare|non posso aiutare|non posso aiutarti|non posso scrivere|non posso generare|non posso rispondere\
|preferisco non parlare|preferisco non rispondere|я не могу предоставить|я не могу помочь|я не могу ответить|я не могу написать|я не могу обсуждать\
|我无法提供|我不能提供|我无法帮|我不能帮|我无法回答|我不能回答|我无法生成|我不能生成|我不能讨论|我无法讨论|我不便|我不方便\
|提供できません|回答できません|お答えできかねます";

/// Of a model, with a word in the first person in its sentence.
const ROLES: &str = "as an ai|as an artificial intelligence|as a language model|as a large language model|as a helpful ai|as your ai assistant\
|as an llm|as a chatbot|as a virtual assistant|as a digital assistant|as a neural network|as a machine learning model|as a computer program\
|being an ai|being a language model|being a large language model|since i am an ai|als ki|als eine ki|als künstliche intelligenz|als sprachmodell|als großes sprachmodell|als ein sprachmodell\
|en tant qu'ia|en tant qu'intelligence artificielle|en tant que modèle de langage|en tant que modèle linguistique|en tant qu'assistant ia\
|как языковая модель|как большая языковая модель|как ии|как искусственный интеллект|будучи языковой моделью\
|作为人工智能我|作为一个人工智能我|作为ai我|作为一个ai我|作为语言模型我|作为一个语言模型我|作为一个ai语言模型我|作为ai语言模型我\
|作为人工智能语言模型我|作为一个人工智能语言模型我|作为人工智能助手我|作为一个人工智能助手我|作为ai助手我|作为一个ai助手我|作为大型语言模型我|作为一个大型语言模型我|作为一个大语言模型我|aiとして私は|言語モデルとして私は";

const FIRST_PERSON: &str = "i|i'm|i've|i'd|i'll|my|me|myself|ich|mir|mich|mein|meine|meinen|meiner|je|j'ai|j'essaie|me|mon|ma|mes|я|мне|меня|мой|моя|мои|我|私";

/// Said of oneself; of languages that leave out the pronoun, at the beginning of a sentence.
const IDENTITIES: &str = "i am an ai|i'm an ai|i am just an ai|i'm just an ai|i'm only an ai|i am only an ai|i am an artificial intelligence\
|i'm an artificial intelligence|i am a language model|i'm a language model|i am a large language model|i'm a large language model\
|i'm just a language model|i am just a language model|i am a virtual assistant|i'm a virtual assistant\
|i am a chatbot|i'm a chatbot|i am just a chatbot|i'm just a chatbot|i am an llm|i'm an llm|i am a machine learning model|i'm a machine learning model\
|i am a neural network|i'm a neural network|i am a computer program|i'm a computer program|i am just a computer program\
|i'm just a computer program|you are talking to an ai|you're talking to an ai|you are speaking with an ai|you're speaking with an ai\
|you are chatting with an ai|you're chatting with an ai|my knowledge cutoff|my knowledge cut off|my training cutoff|my training data\
|my last knowledge update|my last training update|as of my last update|as of my last training\
|ich bin eine ki|ich bin ein ki|ich bin nur eine ki|ich bin ein sprachmodell|ich bin ein großes sprachmodell|ich bin eine künstliche intelligenz\
|je suis une ia|je suis une intelligence artificielle|je suis un modèle de langage|je suis un grand modèle de langage|je suis un assistant ia\
|я языковая модель|я большая языковая модель|я искусственный интеллект|я всего лишь языковая модель\
|我是一个人工智能|我是人工智能助手|我是一个ai|我是ai助手|我是一个语言模型|我是一个大型语言模型|我是一个大语言模型|我是通义千问\
|私はaiです|私はai言語モデル|私は大規模言語モデル|私は人工知能です|私はaiアシスタント";

const STARTING_IDENTITIES: &str = "como modelo de lenguaje|como un modelo de lenguaje|como una ia|como inteligencia artificial no|como asistente de ia\
|soy un modelo de lenguaje|soy una ia|soy una inteligencia artificial|soy un asistente de ia\
|como modelo de linguagem|como um modelo de linguagem|como uma ia|sou um modelo de linguagem|sou uma ia|sou uma inteligência artificial\
|come modello linguistico|come modello di linguaggio|in quanto modello linguistico|in quanto ia|sono un modello linguistico\
|sono un'intelligenza artificiale|sono un'ia|sono un assistente ia";

const INTRODUCTIONS: &str = "i run on|i am based on|i'm based on|i am powered by|i'm powered by|i am built on|i'm built on|i am|i'm|my name is|you can call me|ich bin|mein name ist|je suis|je m'appelle|soy|me llamo|mi nombre es|sou|meu nome é\
|sono|mi chiamo|я|меня зовут|我是|我叫|私は";

/// Between that and a name.
const BEFORE_NAMES: &str = "the|openai's|anthropic's|google's|meta's|alibaba's|microsoft's|xai's";
/// Names that nobody else has.
const MODELS: &str = "chatgpt|gpt|qwen|deepseek|chatglm|kimi k2|ernie bot|通义千问|文心一言";
/// Names that people and things have too.
const NAMESAKES: &str = "claude|gemini|bard|llama|mistral|mixtral|grok|copilot|gemma|phi|kimi|ernie|granite|nemotron|command r|sydney|bing";
/// In whose sentence such a name is a model's.
const OF_MODELS: &str = "ai|ki|ia|ии|assistant|assistent|asistente|assistente|chatbot|language model|sprachmodell|modèle de langage|modelo de lenguaje\
|openai|anthropic|google|deepmind|meta ai|mistral ai|alibaba|microsoft|xai|moonshot|nvidia|ibm|baidu|人工智能|语言模型|助手";

const MADE_BY: &str = "i was created by|i was developed by|i was trained by|i was made by|i was built by|i was designed by|i am developed by|i'm developed by\
|i am trained by|i'm trained by|i am created by|i'm created by|i've been trained by|i have been trained by|as an assistant made by|as an assistant created by|as an assistant developed by\
|as an assistant trained by|as a model made by|as a model trained by|as a model developed by|ich wurde von|ich bin ein von\
|j'ai été créé par|j'ai été développé par|je suis un assistant créé par|je suis un assistant développé par|je suis un modèle créé par|fui creado por|soy un asistente creado por\
|soy un asistente desarrollado por|soy un modelo creado por|sou um assistente criado pela|sono un assistente creato da|fui desarrollado por|fui criado pela|fui desenvolvido pela|sono stato creato da|sono stato sviluppato da\
|меня создала|меня создали|我是由|我由";
/// Behind a maker's name.
const MADE_ME: &str = "trained me|created me|made me|built me|developed me|designed me";
const MAKERS: &str = "openai|anthropic|google|deepmind|meta|mistral|alibaba|deepseek|microsoft|moonshot|zhipu|baidu|bytedance|xai|nvidia|ibm|阿里|百度|深度求索";

/// A list of phrases as words, by their first word.
struct Phrases(HashMap<u64, Vec<Vec<u64>>>);

impl Phrases {
    fn of(list: &str) -> Phrases {
        let mut phrases: HashMap<u64, Vec<Vec<u64>>> = HashMap::new();
        for words in list.split('|').map(phrase) {
            let first = *words.first().expect("a phrase has a word");
            phrases.entry(first).or_default().push(words);
        }
        phrases.values_mut().for_each(|of_word| of_word.sort_by_key(|words| std::cmp::Reverse(words.len())));
        Phrases(phrases)
    }

    /// Words of the longest phrase that `words` begins with.
    fn at_start(&self, words: &[Spoken]) -> Option<usize> {
        let first = words.first().filter(|spoken| !spoken.quoted)?;
        let begins = |phrase: &&Vec<u64>| {
            phrase.len() <= words.len() && phrase.iter().zip(words).all(|(word, spoken)| *word == spoken.word)
        };
        self.0.get(&first.word)?.iter().find(begins).map(Vec::len)
    }

    fn anywhere(&self, words: &[Spoken]) -> bool {
        (0..words.len()).any(|at| self.at_start(&words[at..]).is_some())
    }
}

struct Lists {
    regrets: Phrases,
    /// Who, what, and whether in short replies only.
    english: [(Phrases, Phrases, bool); ENGLISH.len()],
    refusals: Phrases,
    short_refusals: Phrases,
    roles: Phrases,
    first_person: HashSet<u64>,
    identities: Phrases,
    starting: Phrases,
    introductions: Phrases,
    before_names: Phrases,
    models: Phrases,
    namesakes: Phrases,
    of_models: Phrases,
    made_by: Phrases,
    made_me: Phrases,
    makers: Phrases,
}

static LISTS: LazyLock<Lists> = LazyLock::new(|| Lists {
    regrets: Phrases::of(REGRETS),
    english: ENGLISH.map(|(who, what, short_only)| (Phrases::of(who), Phrases::of(what), short_only)),
    refusals: Phrases::of(REFUSALS),
    short_refusals: Phrases::of(SHORT_REFUSALS),
    roles: Phrases::of(ROLES),
    first_person: FIRST_PERSON.split('|').flat_map(phrase).collect(),
    identities: Phrases::of(IDENTITIES),
    starting: Phrases::of(STARTING_IDENTITIES),
    introductions: Phrases::of(INTRODUCTIONS),
    before_names: Phrases::of(BEFORE_NAMES),
    models: Phrases::of(MODELS),
    namesakes: Phrases::of(NAMESAKES),
    of_models: Phrases::of(OF_MODELS),
    made_by: Phrases::of(MADE_BY),
    made_me: Phrases::of(MADE_ME),
    makers: Phrases::of(MAKERS),
});

/// The sentence in which an answer refuses what was asked.
pub fn refusal(answer: &str) -> Option<&str> {
    let sentences = sentences(answer);
    let short = sentences.iter().map(|sentence| sentence.words.len()).sum::<usize>() <= SHORT_REPLY_WORDS;
    let mut first = sentences.into_iter().take(FIRST_SENTENCES);
    let refuses = |words: &[Spoken]| {
        let begins = |at: &usize| *at == 0 || (short && words[*at].begins_clause);
        (0..words.len()).filter(begins).any(|at| begins_with_refusal(&words[at..], short))
    };
    first.find(|sentence| refuses(&sentence.words)).map(|sentence| &answer[sentence.place])
}

fn begins_with_refusal(clause: &[Spoken], short: bool) -> bool {
    let lists = &*LISTS;
    let mut rest = clause;
    while let Some(n) = lists.regrets.at_start(rest) {
        rest = &rest[n..];
    }
    let follows = |who: &Phrases, what: &Phrases| {
        who.at_start(rest).is_some_and(|n| what.at_start(&rest[n..]).is_some())
    };
    lists.english.iter().any(|(who, what, short_only)| (short || !short_only) && follows(who, what))
        || lists.refusals.at_start(rest).is_some()
        || (short && lists.short_refusals.at_start(rest).is_some())
}

/// The sentence in which an answer says that a model wrote it, which or whose.
pub fn self_identification(answer: &str) -> Option<&str> {
    let lists = &*LISTS;
    let identifies = |words: &[Spoken]| {
        let own = words.iter().any(|spoken| !spoken.quoted && lists.first_person.contains(&spoken.word));
        lists.starting.at_start(words).is_some()
            || (0..words.len()).any(|at| identifies_at(&words[at..], own))
    };
    let found = sentences(answer).into_iter().find(|sentence| identifies(&sentence.words));
    found.map(|sentence| &answer[sentence.place])
}

/// Whether what identifies begins here; `own` says that the sentence has a word in the first person.
fn identifies_at(rest: &[Spoken], own: bool) -> bool {
    let lists = &*LISTS;
    if lists.identities.at_start(rest).is_some() || (own && lists.roles.at_start(rest).is_some()) {
        return true;
    }
    if let Some(n) = lists.made_by.at_start(rest) {
        return lists.makers.at_start(&rest[n..]).is_some();
    }
    if let Some(n) = lists.makers.at_start(rest) {
        return lists.made_me.at_start(&rest[n..]).is_some();
    }
    let Some(n) = lists.introductions.at_start(rest) else { return false };
    let name = &rest[n + lists.before_names.at_start(&rest[n..]).unwrap_or(0)..];
    lists.models.at_start(name).is_some()
        || (lists.namesakes.at_start(name).is_some() && lists.of_models.anywhere(&name[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(answer: &str) -> bool {
        refusal(answer).is_some()
    }

    fn identifies_itself(answer: &str) -> bool {
        self_identification(answer).is_some()
    }

    #[test]
    fn refusals_in_several_languages_are_known() {
        for reply in [
            "I can't help with that.",
            "I’m sorry, but I can’t assist with that request.",
            "Sorry. I cannot fulfill this request because it would be harmful.",
            "I'm afraid I won't be able to help you with that.",
            "**Sorry**, but I must decline.",
            "I'm unable to provide medical advice.",
            "I see what you mean, but I won't discuss it.",
            "That isn't something that I'm willing to do.",
            "This request violates our usage policies.",
            "Es tut mir leid, aber dabei kann ich dir nicht helfen.",
            "Leider kann ich Ihnen dabei nicht helfen.",
            "Je suis désolé, mais je ne peux pas répondre à cette demande.",
            "Lo siento, pero no puedo ayudarte con eso.",
            "Desculpe, mas não posso ajudar com isso.",
            "Mi dispiace, ma non posso aiutarti con questa richiesta.",
            "К сожалению, я не могу помочь с этим.",
            "抱歉，我无法协助您完成这个请求。",
            "申し訳ありませんが、お手伝いできません。",
        ] {
            assert!(refuses(reply), "{reply}");
        }
    }

    #[test]
    fn answers_about_refusals_are_none() {
        for reply in [
            "\"I can't help with that,\" said the clerk, and closed the window.",
            "The clerk said: 'I can't help with that.' She left the office and wrote a letter to the mayor.",
            "She could not help him. He asked again, and she refused.",
            "A polite refusal might read:\n> I can't help with that.",
            "I can't stress enough how important sleep is.",
            "I cannot find an integer solution, so the answer is that there is none.",
            "We can't divide by zero. I can help with that: the limit is 2.",
            "Here is the letter. Dear Sir, thank you for your offer. It is a fine one. I must decline it.",
            "No puedo más que recomendar este libro.",
            "This is not something that happens often.",
            "He asked, and I don't share his view. I don't feel comfortable in crowds.",
            "It is against the rules of chess to move twice.",
        ] {
            assert!(!refuses(reply), "{reply}");
        }
        let helpful = format!(
            "I cannot provide a diagnosis, but here is what is known. {}",
            "It helps to rest. ".repeat(30)
        );
        assert!(!refuses(&helpful), "a long reply does more");
        let later =
            format!("I see your point, but I can't help with that. {}", "It helps to rest. ".repeat(30));
        assert!(!refuses(&later), "behind a comma in short replies only");
        let strong = format!("I can't help with that. {}", "It helps to rest. ".repeat(30));
        assert!(refuses(&strong));
    }

    #[test]
    fn models_that_speak_of_themselves_are_known() {
        for reply in [
            "As an AI language model, I don't have feelings.",
            "Well, as a large language model trained by Google, I can say this.",
            "I am an AI assistant.",
            "Hello! I'm ChatGPT, how can I help?",
            "My name is Claude, an AI assistant made by Anthropic.",
            "I was trained by OpenAI to help.",
            "I was developed by DeepSeek.",
            "Als KI-Sprachmodell habe ich keine Gefühle.",
            "En tant que modèle de langage, je ne peux pas le savoir.",
            "Como modelo de lenguaje, no tengo opiniones.",
            "Sou um modelo de linguagem.",
            "Sono un'intelligenza artificiale.",
            "Как языковая модель, я не имею мнения.",
            "作为一个人工智能，我没有感情。",
            "我是通义千问，由阿里云开发。",
            "私はAIです。",
        ] {
            assert!(identifies_itself(reply), "{reply}");
        }
    }

    #[test]
    fn talk_about_models_is_none() {
        for reply in [
            "As a language model, GPT-2 predicts the next word.",
            "As an AI researcher once wrote, the map is no territory.",
            "The robot said, \"I am an AI.\"",
            "I am Claude, a baker from Lyon, and this is my story.",
            "I'm Gemini, born in June.",
            "A model trained by OpenAI won the contest.",
            "作为人工智能的一个分支，机器学习研究数据。",
            "Como modelo de coche, es el mejor.",
            "I think AI is useful.",
            "OpenAI trained it, and Google made hers.",
            "The sensor sends my colleagues an update.",
        ] {
            assert!(!identifies_itself(reply), "{reply}");
        }
    }
}
