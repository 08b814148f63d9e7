//! Replies that refuse, and replies in which a model says what it is or who made it.
//!
//! Both are looked for in what a reply says in its own voice: the answer without its reasoning, without quotations, lines that
//! begin with `>`, and code. Words are compared whole, without case. Lists of phrases miss what they do not have; the lists
//! are of phrases that hardly ever stand in a reply for another reason.
//!
//! - A refusal begins one of the first three sentences, after words of regret or none. Phrases that name what is refused
//!   ("I can't help with that") count in every reply. Those that may begin a helpful answer as well ("I cannot provide …")
//!   count in replies of at most [`SHORT_REPLY_WORDS`] words.
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
const REGRETS: &str = "i'm sorry|i am sorry|i'm very sorry|i'm really sorry|sorry|i apologize|i apologise|my apologies|unfortunately\
|i'm afraid|i'm afraid that|regrettably|but|however|thank you|es tut mir leid|tut mir leid|entschuldigung|leider|aber\
|je suis désolé|je suis désolée|désolé|désolée|malheureusement|mais|lo siento|lo lamento|disculpa|lamentablemente|desafortunadamente|pero\
|desculpe|sinto muito|lamento|infelizmente|mas|mi dispiace|purtroppo|ma|spiacente|извините|простите|к сожалению|мне жаль|но\
|抱歉|很抱歉|非常抱歉|对不起|但|但是|申し訳ありませんが|申し訳ございませんが|すみませんが|ごめんなさい";

/// Who refuses.
const ENGLISH_SUBJECTS: &str = "i can't|i cannot|i can not|i am unable to|i'm unable to|i am not able to|i'm not able to|i won't|i will not\
|i am not allowed to|i'm not allowed to|i won't be able to|i will not be able to|i can't in good conscience";

/// What they will not do, named as what was asked.
const ENGLISH_ACTIONS: &str = "help with that|help you with that|help with this|help you with this|assist with that|assist you with that\
|assist with this|assist you with this|help with such|assist with such|help with your request|assist with your request\
|assist in this|assist in that|help in this matter|fulfill that|fulfill this|fulfil that|fulfil this|fulfill your request\
|fulfil your request|complete this request|complete that request|comply with that|comply with this|comply with your request\
|answer that question|answer this question|provide that information|provide this information|provide assistance with\
|provide information on how to|provide instructions on how to|engage in that|engage with that|continue with this request\
|support that request|support this request|process this request|process that request";

/// What they may not do in part only.
const ENGLISH_SHORT_ACTIONS: &str = "help you|help with|assist you|assist with|assist in|provide|create|generate|write|share|discuss|offer|support|give|produce|engage|fulfill|fulfil\
|comply|answer|respond|do that|do this|participate|facilitate|encourage|recommend";

const REFUSALS: &str = "i must decline|i have to decline|i respectfully decline|i must respectfully decline\
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

const SHORT_REFUSALS: &str = "ich kann keine|ich darf keine|ich kann das nicht|je ne peux pas fournir|je ne peux pas créer|je ne peux pas aider\
|no puedo proporcionar|no puedo ofrecer|no puedo crear|no puedo ayudar|não posso fornecer|não posso criar|não posso ajudar\
|non posso fornire|non posso creare|non posso aiutare|non posso aiutarti|я не могу предоставить|я не могу помочь\
|我无法提供|我不能提供|我无法帮|我不能帮|提供できません";

/// Of a model, with a word in the first person behind it.
const ROLES: &str = "as an ai|as an artificial intelligence|as a language model|as a large language model|as a helpful ai|as your ai assistant\
|being an ai|since i am an ai|als ki|als eine ki|als künstliche intelligenz|als sprachmodell|als großes sprachmodell|als ein sprachmodell\
|en tant qu'ia|en tant qu'intelligence artificielle|en tant que modèle de langage|en tant que modèle linguistique|en tant qu'assistant ia\
|как языковая модель|как большая языковая модель|как ии|как искусственный интеллект|будучи языковой моделью\
|作为人工智能我|作为一个人工智能我|作为ai我|作为一个ai我|作为语言模型我|作为一个语言模型我|作为一个ai语言模型我|作为ai语言模型我\
|作为人工智能助手我|作为一个人工智能助手我|作为ai助手我|作为一个ai助手我|作为大型语言模型我|作为一个大型语言模型我|作为一个大语言模型我|aiとして私は|言語モデルとして私は";

const FIRST_PERSON: &str = "i|i'm|i've|i'd|i'll|my|me|myself|ich|mir|mich|mein|meine|meinen|meiner|je|j'ai|j'essaie|me|mon|ma|mes|я|мне|меня|мой|моя|мои|我|私";

/// Said of oneself; of languages that leave out the pronoun, at the beginning of a sentence.
const IDENTITIES: &str = "i am an ai|i'm an ai|i am just an ai|i'm just an ai|i'm only an ai|i am only an ai|i am an artificial intelligence\
|i'm an artificial intelligence|i am a language model|i'm a language model|i am a large language model|i'm a large language model\
|i'm just a language model|i am just a language model|i am a virtual assistant|i'm a virtual assistant\
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

const INTRODUCTIONS: &str = "i am|i'm|my name is|you can call me|ich bin|mein name ist|je suis|je m'appelle|soy|me llamo|mi nombre es|sou|meu nome é\
|sono|mi chiamo|я|меня зовут|我是|我叫|私は";

/// Names that nobody else has.
const MODELS: &str = "chatgpt|gpt|qwen|deepseek|chatglm|kimi k2|ernie bot|通义千问|文心一言";
/// Names that people and things have too.
const NAMESAKES: &str = "claude|gemini|bard|llama|mistral|mixtral|grok|copilot|gemma|phi|kimi|ernie|granite|nemotron|command r|sydney|bing";
/// In whose sentence such a name is a model's.
const OF_MODELS: &str = "ai|ki|ia|ии|assistant|assistent|asistente|assistente|chatbot|language model|sprachmodell|modèle de langage|modelo de lenguaje\
|openai|anthropic|google|deepmind|meta ai|mistral ai|alibaba|microsoft|xai|moonshot|nvidia|ibm|baidu|人工智能|语言模型|助手";

const MADE_BY: &str = "i was created by|i was developed by|i was trained by|i was made by|i was built by|i was designed by|i am developed by|i'm developed by\
|i am trained by|i'm trained by|i am created by|i'm created by|i've been trained by|i have been trained by|ich wurde von\
|j'ai été créé par|j'ai été développé par|fui creado por|fui desarrollado por|fui criado pela|fui desenvolvido pela|sono stato creato da|sono stato sviluppato da\
|меня создала|меня создали|我是由|我由";
const MAKERS: &str = "openai|anthropic|google|deepmind|meta|mistral|alibaba|deepseek|microsoft|moonshot|zhipu|baidu|bytedance|xai|nvidia|ibm|阿里|百度|深度求索";

/// Lists of phrases as words, by their first word.
struct Phrases(HashMap<u64, Vec<Vec<u64>>>);

impl Phrases {
    fn of(lists: &[&str]) -> Phrases {
        let mut phrases: HashMap<u64, Vec<Vec<u64>>> = HashMap::new();
        for words in lists.iter().flat_map(|list| list.split('|')).map(phrase) {
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
    subjects: Phrases,
    actions: Phrases,
    short_actions: Phrases,
    refusals: Phrases,
    short_refusals: Phrases,
    roles: Phrases,
    first_person: HashSet<u64>,
    identities: Phrases,
    starting: Phrases,
    introductions: Phrases,
    models: Phrases,
    namesakes: Phrases,
    of_models: Phrases,
    made_by: Phrases,
    makers: Phrases,
}

static LISTS: LazyLock<Lists> = LazyLock::new(|| Lists {
    regrets: Phrases::of(&[REGRETS]),
    subjects: Phrases::of(&[ENGLISH_SUBJECTS]),
    actions: Phrases::of(&[ENGLISH_ACTIONS]),
    short_actions: Phrases::of(&[ENGLISH_SHORT_ACTIONS]),
    refusals: Phrases::of(&[REFUSALS]),
    short_refusals: Phrases::of(&[SHORT_REFUSALS]),
    roles: Phrases::of(&[ROLES]),
    first_person: FIRST_PERSON.split('|').flat_map(phrase).collect(),
    identities: Phrases::of(&[IDENTITIES]),
    starting: Phrases::of(&[STARTING_IDENTITIES]),
    introductions: Phrases::of(&[INTRODUCTIONS]),
    models: Phrases::of(&[MODELS]),
    namesakes: Phrases::of(&[NAMESAKES]),
    of_models: Phrases::of(&[OF_MODELS]),
    made_by: Phrases::of(&[MADE_BY]),
    makers: Phrases::of(&[MAKERS]),
});

/// The sentence in which an answer refuses what was asked.
pub fn refusal(answer: &str) -> Option<&str> {
    let sentences = sentences(answer);
    let short = sentences.iter().map(|sentence| sentence.words.len()).sum::<usize>() <= SHORT_REPLY_WORDS;
    let mut first = sentences.into_iter().take(FIRST_SENTENCES);
    first.find(|sentence| begins_with_refusal(&sentence.words, short)).map(|sentence| &answer[sentence.place])
}

fn begins_with_refusal(sentence: &[Spoken], short: bool) -> bool {
    let lists = &*LISTS;
    let mut rest = sentence;
    while let Some(n) = lists.regrets.at_start(rest) {
        rest = &rest[n..];
    }
    let refused = |rest: &[Spoken], phrases: &Phrases| phrases.at_start(rest).is_some();
    if let Some(n) = lists.subjects.at_start(rest) {
        let action = &rest[n..];
        return refused(action, &lists.actions) || (short && refused(action, &lists.short_actions));
    }
    refused(rest, &lists.refusals) || (short && refused(rest, &lists.short_refusals))
}

/// The sentence in which an answer says that a model wrote it, which or whose.
pub fn self_identification(answer: &str) -> Option<&str> {
    let identifies = |words: &[Spoken]| {
        LISTS.starting.at_start(words).is_some() || (0..words.len()).any(|at| identifies_at(words, at))
    };
    let found = sentences(answer).into_iter().find(|sentence| identifies(&sentence.words));
    found.map(|sentence| &answer[sentence.place])
}

fn identifies_at(sentence: &[Spoken], at: usize) -> bool {
    let lists = &*LISTS;
    let rest = &sentence[at..];
    if lists.identities.at_start(rest).is_some() {
        return true;
    }
    let in_first_person =
        || rest.iter().any(|spoken| !spoken.quoted && lists.first_person.contains(&spoken.word));
    if lists.roles.at_start(rest).is_some() && in_first_person() {
        return true;
    }
    if let Some(n) = lists.made_by.at_start(rest) {
        return lists.makers.at_start(&rest[n..]).is_some();
    }
    let Some(n) = lists.introductions.at_start(rest) else { return false };
    let name = &rest[n..];
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
        ] {
            assert!(!refuses(reply), "{reply}");
        }
        let helpful = format!(
            "I cannot provide a diagnosis, but here is what is known. {}",
            "It helps to rest. ".repeat(30)
        );
        assert!(!refuses(&helpful), "a long reply does more");
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
        ] {
            assert!(!identifies_itself(reply), "{reply}");
        }
    }
}
