//! Replies of OpenAI's interface, as servers write them and as they should not.

use proptest::prelude::*;
use serde_json::{Value, json};
use stillroom_formats::openai::{
    Caps, Finish, Progress, Reply, ReplyFault, StreamReader, Usage, read_batch_line, read_error, read_reply,
};

fn chat(message: Value) -> Vec<u8> {
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    json!({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})
        .to_string()
        .into_bytes()
}

fn reply(message: Value) -> Reply {
    read_reply(&chat(message)).expect("a reply")
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// What a stream gives that comes in these pieces.
fn streamed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Reply, ReplyFault> {
    let mut reader = StreamReader::new(Caps::default());
    for piece in pieces {
        reader.feed(piece)?;
    }
    reader.finish()
}

fn events(chunks: &[Value]) -> Vec<u8> {
    let mut stream = String::new();
    for chunk in chunks {
        stream.push_str(&format!("data: {chunk}\n\n"));
    }
    stream.push_str("data: [DONE]\n\n");
    stream.into_bytes()
}

fn delta(delta: Value) -> Value {
    json!({"id": "s", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn end(reason: &str) -> Value {
    json!({"id": "s", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

#[test]
fn a_chat_of_openai_is_read() {
    let body = br#"{
      "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG", "object": "chat.completion", "created": 1741570283,
      "model": "gpt-4o-2024-08-06",
      "choices": [{"index": 0, "message": {"role": "assistant", "content": "  Hi\u0007  ", "refusal": null, "annotations": []},
        "logprobs": {"content": [{"token": "Hi", "logprob": -0.31725305, "bytes": [72, 105], "top_logprobs": [
            {"token": "Hi", "logprob": -0.31725305, "bytes": [72, 105]}, {"token": " \ud83d", "logprob": -1.5, "bytes": null}]}]},
        "finish_reason": "length"}],
      "usage": {"prompt_tokens": 1117, "completion_tokens": 46, "total_tokens": 1163,
        "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0}},
      "service_tier": "default", "system_fingerprint": "fp_fc9f1d7035"}"#;
    let reply = read_reply(body).expect("a reply");
    assert_eq!(reply.id, some("chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG"));
    assert_eq!(reply.model, some("gpt-4o-2024-08-06"));
    assert_eq!(
        (reply.content.as_str(), reply.reasoning_content, reply.finish),
        ("Hi\u{7}", None, Finish::Length)
    );
    let usage = Usage {
        prompt_tokens: 1117,
        completion_tokens: 46,
        cached_prompt_tokens: Some(10),
        reasoning_tokens: Some(7),
    };
    assert_eq!(reply.usage, Some(usage));
    let logprobs = reply.logprobs.expect("log-probabilities");
    assert_eq!((logprobs.len(), logprobs[0].logprob), (1, Some(-0.31725305)));
    assert_eq!(logprobs[0].bytes.as_deref(), Some(&b"Hi"[..]));
    assert_eq!(logprobs[0].top[1], (" \u{fffd}".to_owned(), None, -1.5));
}

#[test]
fn what_vllm_adds_is_read() {
    let body = br#"{"id":"x","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"B","reasoning":"A"},
        "logprobs":{"content":[{"token":"token_id:33","logprob":-9999.0,"bytes":[66],"top_logprobs":[]}]},
        "finish_reason":"stop","stop_reason":null,"token_ids":[33,2]}],
        "prompt_logprobs":[null,{"5":{"logprob":-1.5,"rank":3,"decoded_token":" a"},"9":{"logprob":-0.5,"rank":1,"decoded_token":null}}],
        "prompt_token_ids":[1,5],"usage":{"prompt_tokens":2.0,"completion_tokens":2,"prompt_tokens_details":null}}"#;
    let reply = read_reply(body).expect("a reply");
    assert_eq!((reply.content.as_str(), reply.reasoning_content), ("B", some("A")));
    assert_eq!(reply.logprobs.expect("log-probabilities")[0].id, Some(33));
    assert_eq!((reply.token_ids, reply.prompt_token_ids), (Some(vec![33, 2]), Some(vec![1, 5])));
    let prompt = reply.prompt_logprobs.expect("the prompt's");
    assert_eq!(prompt[0], None);
    let second = prompt[1].as_ref().expect("the second token's");
    assert_eq!((second[0].id, second[0].rank, second[0].token.as_deref()), (5, Some(3), Some(" a")));
    assert_eq!((second[1].id, second[1].logprob), (9, -0.5));
}

#[test]
fn a_completion_is_read_as_it_came() {
    let body = br#"{"id":"cmpl-1","choices":[{"index":0,"text":" a b\n","finish_reason":"length",
        "logprobs":{"tokens":[" a"," b","\n"],"token_logprobs":[null,-0.25,-1],"text_offset":[0,2,4],
        "top_logprobs":[null,{" b":-0.25," c":-2.5},null]}}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#;
    let reply = read_reply(body).expect("a reply");
    assert_eq!((reply.content.as_str(), reply.finish), (" a b\n", Finish::Length));
    let logprobs = reply.logprobs.expect("log-probabilities");
    assert_eq!(logprobs.iter().map(|l| l.logprob).collect::<Vec<_>>(), [None, Some(-0.25), Some(-1.0)]);
    assert_eq!(logprobs[1].top[1], (" c".to_owned(), None, -2.5));
    let uneven = br#"{"choices":[{"text":"a","finish_reason":"stop","logprobs":{"tokens":["a"],"token_logprobs":[]}}]}"#;
    assert!(matches!(read_reply(uneven), Err(ReplyFault::Shape { .. })));
}

#[test]
fn reasoning_is_found_under_each_of_its_names() {
    for message in [
        json!({"content": " B ", "reasoning_content": "A\n"}),
        json!({"content": "B", "reasoning": "A", "reasoning_content": null}),
        json!({"content": "B", "thinking": [{"type": "thinking", "thinking": "A", "signature": "x"}]}),
        json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "A"}]}, {"type": "text", "text": "B"}]}),
        json!({"content": "<think>\nA\n</think>\n\nB"}),
        json!({"content": "A</think>B"}),
        json!({"content": "B", "reasoning": "A", "reasoning_content": "A"}),
    ] {
        let reply = reply(message.clone());
        assert_eq!((reply.reasoning_content, reply.content.as_str()), (some("A"), "B"), "{message}");
    }
    let given = reply(json!({"content": "say </think> and stop", "reasoning_content": "A"}));
    assert_eq!(given.content, "say </think> and stop", "reasoning was given, so this is text");
    assert_eq!(reply(json!({"content": "<think></think>2"})).reasoning_content, None);
    assert_eq!(reply(json!({"content": "<think>never closed"})).content, "<think>never closed");
}

#[test]
fn a_refusal_is_no_answer() {
    let refused = reply(json!({"content": null, "refusal": "I cannot."}));
    assert_eq!((refused.content.as_str(), refused.finish), ("I cannot.", Finish::ContentFilter));
}

#[test]
fn calls_have_their_arguments_as_objects() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100), "]".repeat(100));
    let calls = json!([
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"y": [], "\"z\n": [1, -2, 0.5, true, null, {"é": "\u{1}"}]}}},
        {"id": "3", "type": "function", "function": {"name": "h", "arguments": "not JSON"}},
        {"type": "function", "function": {"name": "k", "arguments": deep}},
    ]);
    let reply = reply(json!({"content": null, "tool_calls": calls}));
    let arguments: Vec<&Value> = reply.tool_calls.iter().map(|call| &call["function"]["arguments"]).collect();
    assert_eq!(
        arguments[..3],
        [
            &json!({"x": 1}),
            &json!({"y": [], "\"z\n": [1, -2, 0.5, true, null, {"é": "\u{1}"}]}),
            &json!("not JSON")
        ]
    );
    assert_eq!(arguments[3], &json!(deep), "too deep to be written and read again");
    assert_eq!(reply.tool_calls[1]["id"], "2");
    assert_eq!(reply.tool_calls[3].get("id"), None);
}

#[test]
fn choice_zero_is_the_reply() {
    let choice = |index: i64, text: &str| json!({"index": index, "message": {"content": text}, "finish_reason": "stop"});
    let of = |choices: Value| read_reply(json!({"choices": choices}).to_string().as_bytes());
    assert_eq!(of(json!([choice(1, "b"), choice(0, "a")])).expect("a reply").content, "a");
    assert_eq!(of(json!([choice(1, "b")])), Err(ReplyFault::WrongIndex { index: 1 }));
    assert_eq!(of(json!([choice(0, "a"), choice(0, "b")])), Err(ReplyFault::SameIndex));
    assert_eq!(of(json!([])), Err(ReplyFault::NoChoice));
    assert_eq!(of(json!(null)), Err(ReplyFault::NoChoice));
    let unnumbered = json!([{"message": {"content": "a"}, "finish_reason": "stop"}]);
    assert_eq!(of(unnumbered).expect("a reply").content, "a");
    let unfinished = json!([{"message": {"content": "a"}, "finish_reason": null}]);
    assert_eq!(of(unfinished), Err(ReplyFault::Cut { pieces: 1 }));
}

#[test]
fn finish_reasons_have_their_names() {
    let of = |name: &str| {
        let choices = json!([{"message": {"content": "a"}, "finish_reason": name}]);
        read_reply(json!({"choices": choices}).to_string().as_bytes()).expect("a reply").finish
    };
    assert_eq!(of("stop"), Finish::Stop);
    assert_eq!(of("tool_calls"), Finish::ToolCalls);
    assert_eq!(of("content_filter"), Finish::ContentFilter);
    assert_eq!(of("abort"), Finish::Other("abort".to_owned()));
    let Finish::Other(long) = of(&"é".repeat(1000)) else { panic!("another reason") };
    assert_eq!(long.chars().count(), Finish::NAME_CHARS_MAX);
}

/// A stream with everything: a comment, reasoning, text, calls in parts, log-probabilities, usage in its last chunk.
fn rich_stream() -> Vec<u8> {
    let call = |index: u32, part: Value| delta(json!({"tool_calls": [{"index": index, "function": part}]}));
    let mut first = delta(json!({"tool_calls": [{"index": 1, "id": "call_b", "type": "function",
        "function": {"name": "g", "arguments": ""}}]}));
    first["model"] = json!("m");
    let mut text = delta(json!({"content": "Grüße 🌱"}));
    text["choices"][0]["logprobs"] =
        json!({"content": [{"token": "Gr", "logprob": -0.5, "bytes": [71, 114], "top_logprobs": []}]});
    text["choices"][0]["token_ids"] = json!([4]);
    let chunks = [
        delta(json!({"role": "assistant", "content": ""})),
        delta(json!({"reasoning_content": "So\n"})),
        delta(json!({"reasoning_content": "it is"})),
        text,
        delta(json!({"content": ", you"})),
        delta(
            json!({"tool_calls": [{"index": 0, "id": "call_a", "function": {"name": "f", "arguments": "{\"x\":"}}]}),
        ),
        first,
        call(0, json!({"arguments": " 1}"})),
        call(1, json!({"arguments": "{}"})),
        json!({"id": "s", "choices": [{"index": 1, "delta": {"content": "another"}, "finish_reason": "stop"}]}),
        end("tool_calls"),
        json!({"id": "s", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8}}),
    ];
    let mut stream = b"\xef\xbb\xbf: keep-alive\r\n\r\n".to_vec();
    stream.extend(events(&chunks));
    stream
}

#[test]
fn a_stream_is_put_together() {
    let stream = rich_stream();
    let reply = streamed([&stream[..]]).expect("a reply");
    assert_eq!(reply.content, "Grüße 🌱, you");
    assert_eq!(reply.reasoning_content, some("So\nit is"));
    assert_eq!(
        reply.tool_calls,
        [
            json!({"id": "call_a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}),
            json!({"id": "call_b", "type": "function", "function": {"name": "g", "arguments": {}}}),
        ]
    );
    assert_eq!(reply.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)), Some((9, 8)));
    assert_eq!((reply.finish, reply.model, reply.token_ids), (Finish::ToolCalls, some("m"), Some(vec![4])));
    assert_eq!((reply.pieces, reply.logprobs.map(|l| l.len())), (8, Some(1)));
}

#[test]
fn a_cut_stream_is_no_reply() {
    let stream = rich_stream();
    let text = String::from_utf8_lossy(&stream).into_owned();
    let end = text.find("\"finish_reason\":\"tool_calls\"").expect("the end");
    for cut in 0..=end {
        let fault = streamed([&stream[..cut]]).expect_err("no end was seen");
        assert!(matches!(fault, ReplyFault::Cut { .. }), "cut at {cut}: {fault}");
    }
    assert_eq!(streamed([&stream[..end]]), Err(ReplyFault::Cut { pieces: 8 }));
    let without_done = &stream[..stream.len() - "data: [DONE]\n\n".len()];
    assert_eq!(streamed([without_done]), streamed([&stream[..]]), "`[DONE]` may be missing");
}

#[test]
fn progress_counts_pieces_and_sees_the_end() {
    let mut reader = StreamReader::new(Caps::default());
    let feed = |reader: &mut StreamReader, bytes: &[u8]| reader.feed(bytes).expect("progress");
    assert_eq!(feed(&mut reader, b": hello\n\n"), Progress { pieces: 0, ended: false });
    let piece = format!("data: {}\n\n", delta(json!({"content": "a"})));
    assert_eq!(feed(&mut reader, piece.as_bytes()), Progress { pieces: 1, ended: false });
    assert_eq!(feed(&mut reader, &events(&[end("stop")])), Progress { pieces: 1, ended: true });
    assert_eq!(feed(&mut reader, b"data: junk after the end\n\n").pieces, 1);
    assert_eq!(reader.finish().expect("a reply").content, "a");
}

#[test]
fn streams_that_contradict_themselves_are_faults() {
    let text = |text: &str| delta(json!({"content": text}));
    let of = |chunks: &[Value]| streamed([&events(chunks)[..]]);
    let mut other = text("b");
    other["id"] = json!("t");
    assert_eq!(of(&[text("a"), other, end("stop")]), Err(ReplyFault::MixedIds));
    assert_eq!(of(&[text("a"), end("stop"), text("b")]), Err(ReplyFault::AfterEnd));
    assert_eq!(of(&[]), Err(ReplyFault::NoChoice));
    let one =
        json!({"id": "s", "choices": [{"index": 1, "delta": {"content": "a"}, "finish_reason": "stop"}]});
    assert_eq!(of(&[one]), Err(ReplyFault::WrongIndex { index: 1 }));
    let damaged = json!({"id": "s", "object": "chat.completion.chunk", "created": 1});
    assert_eq!(of(&[text("a"), damaged, end("stop")]), Err(ReplyFault::NoChoice), "a word may be missing");
    assert_eq!(of(&[text("a"), json!({"type": "ping"}), end("stop")]).expect("a reply").content, "a");
    let failed = json!({"error": {"message": "out of memory\u{1b}[2J", "code": 500}});
    let Err(ReplyFault::ErrorObject(error)) = of(&[text("a"), failed]) else { panic!("an error") };
    assert_eq!((error.message.as_str(), error.code.as_deref()), ("out of memory\\u{1b}[2J", Some("500")));
    assert!(matches!(streamed([&b"data: {\"id\":\n\n"[..]]), Err(ReplyFault::NotJson { .. })));
    // A second end and a second `[DONE]` say nothing new.
    let mut twice = events(&[text("a"), end("stop"), end("stop")]);
    twice.extend_from_slice(b"data: [DONE]\n\n");
    assert_eq!(streamed([&twice[..]]).expect("a reply").content, "a");
}

#[test]
fn pieces_that_came_twice_show_beside_the_usage() {
    let text = |text: &str| delta(json!({"content": text}));
    let usage = json!({"id": "s", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
    let of = |chunks: &[Value]| streamed([&events(chunks)[..]]).expect("a reply");
    assert!(!of(&[text("a"), text("b"), end("stop"), usage.clone()]).has_more_pieces_than_tokens());
    assert!(of(&[text("a"), text("a"), text("b"), end("stop"), usage]).has_more_pieces_than_tokens());
}

#[test]
fn bytes_that_are_no_reply_are_faults() {
    let invalid = [&chat(json!({"content": "a"}))[..40], b"\xff"].concat();
    assert_eq!(read_reply(&invalid), Err(ReplyFault::NotUtf8 { offset: 40 }));
    assert!(matches!(read_reply(b""), Err(ReplyFault::NotJson { .. })));
    assert!(matches!(read_reply(b"<html>502</html>"), Err(ReplyFault::NotJson { .. })));
    assert!(matches!(read_reply(b"[]"), Err(ReplyFault::Shape { .. } | ReplyFault::NoChoice)));
    assert!(read_reply(&"[".repeat(1 << 20).into_bytes()).is_err());
    let whole = chat(json!({"content": "a long enough answer"}));
    for cut in 1..whole.len() {
        assert!(matches!(read_reply(&whole[..cut]), Err(ReplyFault::NotJson { .. })), "cut at {cut}");
    }
    let deep = ["[".repeat(5000), "]".repeat(5000)].concat();
    assert_eq!(
        read_reply(format!("{{\"x\":{deep},\"choices\":[]}}").as_bytes()),
        Err(ReplyFault::NoChoice),
        "unread"
    );
    let content = format!("{{\"choices\":[{{\"message\":{{\"content\":{deep}}}}}]}}");
    assert!(
        matches!(read_reply(content.as_bytes()), Err(ReplyFault::NotJson { .. })),
        "beyond the recursion limit"
    );
    let Err(ReplyFault::Shape { what }) = read_reply(b"{\"choices\":\"\\u001b]0;x\\u0007\"}") else {
        panic!("another shape")
    };
    assert!(!what.chars().any(char::is_control), "{what}");
}

#[test]
fn an_error_with_status_200_is_an_error() {
    for body in [
        r#"{"error":{"message":"no","type":"t","code":null}}"#,
        r#"{"object":"error","message":"no","type":"t","code":404}"#,
        r#"{"detail":"no"}"#,
    ] {
        let Err(ReplyFault::ErrorObject(error)) = read_reply(body.as_bytes()) else { panic!("{body}") };
        assert_eq!(error.message, "no");
    }
}

#[test]
fn lengths_have_caps() {
    let caps = Caps { bytes_max: 4096, text_bytes_max: 64 };
    let feed = |stream: &[u8]| StreamReader::new(caps).feed(stream);
    let long = events(&[delta(json!({"content": "x".repeat(65)}))]);
    assert!(matches!(feed(&long), Err(ReplyFault::TooLarge { what: "the text", value: 65, limit: 64 })));
    assert!(matches!(feed(&[b':'; 5000]), Err(ReplyFault::TooLarge { what: "the stream", .. })));
    let many = json!({"choices": vec![json!({}); 1000]}).to_string();
    assert!(matches!(read_reply(many.as_bytes()), Err(ReplyFault::Shape { .. })));
    let huge = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": u64::MAX, "completion_tokens": 1}});
    assert!(matches!(read_reply(huge.to_string().as_bytes()), Err(ReplyFault::TooLarge { .. })));
    let negative = json!({"choices": [], "usage": {"prompt_tokens": -1}}).to_string();
    assert!(matches!(read_reply(negative.as_bytes()), Err(ReplyFault::Shape { .. })));
}

/// What OpenAI's own client makes of streams (oracles/openai_streams.py).
#[test]
fn streams_read_as_openai_s_client_reads_them() {
    let golden: Value =
        serde_json::from_str(include_str!("golden/openai_streams.json")).expect("the golden file");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 16);
    for (n, case) in cases.iter().enumerate() {
        let stream = case["stream"].as_str().expect("a stream").as_bytes();
        for size in [stream.len(), 7, 1] {
            let reply = streamed(stream.chunks(size)).unwrap_or_else(|fault| panic!("case {n}: {fault}"));
            assert_like_client(&reply, case, n);
        }
    }
}

fn assert_like_client(reply: &Reply, case: &Value, n: usize) {
    let text = |key: &str| case[key].as_str().expect("text");
    // A refusal takes the place of content, and white space around either is dropped.
    let (content, finish) = match text("refusal") {
        "" => (text("content"), text("finish_reason")),
        refusal => (refusal, "content_filter"),
    };
    assert_eq!(reply.content, content.trim(), "case {n}");
    assert_eq!(json!(reply.finish), finish, "case {n}");
    let calls = case["tool_calls"].as_array().expect("calls").iter().map(|call| {
        let arguments: Value =
            serde_json::from_str(call[2].as_str().expect("text")).expect("whole arguments");
        json!({"id": call[0], "type": "function", "function": {"name": call[1], "arguments": arguments}})
    });
    assert_eq!(reply.tool_calls, calls.collect::<Vec<_>>(), "case {n}");
    let logprobs = reply.logprobs.as_ref();
    let each =
        logprobs.map(|list| list.iter().map(|t| json!([t.token, t.logprob, t.bytes])).collect::<Vec<_>>());
    assert_eq!(json!(each), case["logprobs"], "case {n}");
    let usage = reply
        .usage
        .map(|u| (u.prompt_tokens, u.completion_tokens, u.cached_prompt_tokens, u.reasoning_tokens));
    assert_eq!(json!(usage), case["usage"], "case {n}");
}

proptest! {
    #[test]
    fn how_a_stream_is_split_changes_nothing(cuts in proptest::collection::vec(0usize..3000, 0..40), crlf: bool) {
        let mut stream = rich_stream();
        if crlf {
            stream = String::from_utf8(stream).expect("text").replace('\n', "\r\n").into_bytes();
        }
        let expected = streamed([&rich_stream()[..]]).expect("a reply");
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % stream.len()).chain([0, stream.len()]).collect();
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]]);
        prop_assert_eq!(streamed(pieces), Ok(expected));
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        drop(read_reply(&bytes));
        drop(read_error(&bytes));
        drop(read_batch_line(&bytes));
        drop(streamed([&bytes[..]]));
    }

    #[test]
    fn no_damage_makes_a_reader_panic(at in 0usize..3000, with in proptest::collection::vec(any::<u8>(), 0..8), drop_n in 0usize..200) {
        let mut bytes = rich_stream();
        let at = at % bytes.len();
        let end = (at + drop_n).min(bytes.len());
        bytes.splice(at..end, with);
        drop(streamed([&bytes[..]]));
        let body = bytes.split(|&b| b == b'\n').max_by_key(|line| line.len()).expect("a line").to_vec();
        drop(read_reply(body.strip_prefix(b"data: ").unwrap_or(&body)));
        drop(read_error(&body));
    }

    #[test]
    fn text_survives_both_ways(text in "\\PC*", reasoning in proptest::option::of("[a-z\u{0}-\u{1f}\u{7f}-\u{9f}\u{202e}]{0,20}")) {
        prop_assume!(!text.contains("</think>"));
        let message = json!({"content": text, "reasoning_content": reasoning});
        let whole = reply(message.clone());
        prop_assert_eq!(&whole.content, text.trim());
        let in_stream = streamed([&events(&[delta(message), end("stop")])[..]]).expect("a reply");
        prop_assert_eq!((&in_stream.content, &in_stream.reasoning_content), (&whole.content, &whole.reasoning_content));
        let kept = reasoning.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        prop_assert_eq!(whole.reasoning_content, kept);
    }
}
