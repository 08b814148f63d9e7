//! What is answered, and that it is what the model writes by itself.

mod common;

use common::{CONTEXT, serve};
use serde_json::{Value, json};
use stillroom_core::{Message, Role};
use stillroom_serve::Limits;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn numbers(list: &Value) -> Vec<Option<f32>> {
    list.as_array().expect("a list").iter().map(|n| n.as_f64().map(|n| n as f32)).collect()
}

#[test]
fn a_completion_has_the_bits_that_the_model_writes_alone() {
    let server = serve(Limits::default(), &[]);
    let prompt = "Tom has 3 apples";
    let ids = server.tokenizer.encode(prompt).expect("ids");
    for (temperature, seed) in [(0.0, 0), (1.0, 5), (0.7, u64::MAX)] {
        let alone = server.alone(&ids, &server.sampling(40, temperature, seed), 0);
        let body = json!({
            "model": "tiny", "prompt": prompt, "max_tokens": 40, "temperature": temperature, "seed": seed,
            "logprobs": 2, "return_token_ids": true,
        });
        let reply = server.post(COMPLETIONS, &body.to_string());
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        let reply = reply.json();
        let choice = &reply["choices"][0];
        assert_eq!(choice["text"], server.tokenizer.decode_text(&alone.token_ids));
        assert_eq!(choice["token_ids"], json!(alone.token_ids));
        assert_eq!(choice["finish_reason"], alone.finish_reason.as_str());
        let expected: Vec<Option<f32>> = alone.logprobs.iter().copied().map(Some).collect();
        assert_eq!(numbers(&choice["logprobs"]["token_logprobs"]), expected);
        assert_eq!(reply["usage"]["prompt_tokens"], ids.len());
        assert_eq!(reply["usage"]["completion_tokens"], alone.token_ids.len());
        assert!(reply["system_fingerprint"].as_str().is_some_and(|text| text.starts_with("fp_")));
    }
}

#[test]
fn many_requests_at_once_change_nothing_of_each_other() {
    let server = serve(Limits { in_flight_max: 5, ..Limits::default() }, &[]);
    let asked: Vec<(String, u64, usize)> = (0..24)
        .map(|i| (format!("Ana buys {i} pens for {} coins", i * 7 % 5), i, 5 + i as usize * 3 % 60))
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = asked
            .iter()
            .map(|(prompt, seed, n)| {
                let server = &server;
                scope.spawn(move || {
                    let body = json!({
                        "prompt": prompt, "max_tokens": n, "temperature": 1.0, "seed": seed, "n": 2,
                        "return_token_ids": true, "stream": seed % 2 == 0,
                    });
                    let reply = server.post(COMPLETIONS, &body.to_string());
                    let mut ids = [Vec::new(), Vec::new()];
                    let choices: Vec<Value> = match seed % 2 == 0 {
                        true => reply.events().iter().map(|event| event["choices"][0].clone()).collect(),
                        false => reply.json()["choices"].as_array().expect("choices").clone(),
                    };
                    for choice in choices {
                        let index = choice["index"].as_u64().expect("an index") as usize;
                        ids[index].extend(
                            choice["token_ids"]
                                .as_array()
                                .expect("ids")
                                .iter()
                                .map(|id| id.as_u64().unwrap() as u32),
                        );
                    }
                    ids
                })
            })
            .collect();
        for ((prompt, seed, n), thread) in asked.iter().zip(threads) {
            let ids = server.tokenizer.encode(prompt).expect("ids");
            let found = thread.join().expect("an answer");
            for (sample, found) in (0..).zip(found) {
                let alone = server.alone(&ids, &server.sampling(*n, 1.0, *seed), sample);
                assert_eq!(found, alone.token_ids, "{prompt}, sample {sample}");
            }
        }
    });
}

#[test]
fn a_chat_is_the_models_template_whole_or_in_pieces() {
    let server = serve(Limits::default(), &[]);
    let ids = server.tokenizer.encode_chat(&[Message::new(Role::User, "How many?")], true).expect("ids");
    let alone = server.alone(&ids, &server.sampling(60, 1.0, 3), 0);
    let text = server.tokenizer.decode_text(&alone.token_ids);
    let body = json!({
        "messages": [{"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}],
        "max_completion_tokens": 60, "seed": 3, "logprobs": true, "top_logprobs": 3,
    });
    let whole = server.post(CHAT, &body.to_string()).json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(
        whole["choices"][0]["message"],
        json!({"role": "assistant", "content": text, "refusal": null})
    );
    let content = whole["choices"][0]["logprobs"]["content"].as_array().expect("content");
    assert_eq!(content.len(), alone.token_ids.len());
    for (entry, (&id, &logprob)) in content.iter().zip(alone.token_ids.iter().zip(&alone.logprobs)) {
        assert_eq!(entry["bytes"], json!(server.tokenizer.token_bytes(id)));
        assert_eq!(entry["logprob"].as_f64().map(|l| l as f32), Some(logprob));
        let top = entry["top_logprobs"].as_array().expect("others");
        assert!(top.len() == 3 && top[0]["logprob"].as_f64() >= entry["logprob"].as_f64());
    }
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let reply = server.post(CHAT, &streamed.to_string());
    assert!(reply.head.contains("content-type: text/event-stream"), "{}", reply.head);
    let events = reply.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let pieces: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, text);
    let entries: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(&entries, content);
    let last = events.last().expect("usage");
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    let ends: Vec<&Value> = events.iter().filter(|e| e["choices"][0]["finish_reason"].is_string()).collect();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0]["choices"][0]["finish_reason"], alone.finish_reason.as_str());
}

#[test]
fn an_echoed_prompt_has_the_scores_of_its_tokens() {
    let server = serve(Limits::default(), &[]);
    let ids = server.tokenizer.encode("Tom has 3 apples, and \u{1f642}.").expect("ids");
    let scores = server.decoder.token_logprobs(&[&ids]).remove(0);
    let close = |found: &[Option<f32>]| {
        assert_eq!(found.len(), scores.len());
        found.iter().zip(&scores).all(|(found, score)| (found.expect("a number") - score).abs() < 1e-5)
    };
    // As `lm-eval` asks, and as our own `teacher.scoring = "echo"`.
    let body = json!({
        "prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234, "temperature": 0,
    });
    let choice = server.post(COMPLETIONS, &body.to_string()).json()["choices"][0].clone();
    let found = numbers(&choice["logprobs"]["token_logprobs"]);
    assert_eq!((found.len(), found[0]), (ids.len() + 1, None));
    assert!(close(&found[1..ids.len()]));
    let top = choice["logprobs"]["top_logprobs"].as_array().expect("others");
    assert_eq!((top.len(), &top[0]), (ids.len() + 1, &Value::Null));
    assert!(choice["text"].as_str().is_some_and(|text| text.starts_with("Tom has 3 apples, and \u{1f642}.")));
    let nothing = json!({"prompt": ids, "max_tokens": 0, "logprobs": 0, "echo": true});
    let choice = server.post(COMPLETIONS, &nothing.to_string()).json()["choices"][0].clone();
    assert_eq!(numbers(&choice["logprobs"]["token_logprobs"]).len(), ids.len());
    assert_eq!(choice["finish_reason"], "length");
    // vLLM's way.
    let body = json!({"prompt": ids, "max_tokens": 1, "prompt_logprobs": 2, "temperature": 0});
    let choice = server.post(COMPLETIONS, &body.to_string()).json()["choices"][0].clone();
    let entries = choice["prompt_logprobs"].as_array().expect("entries");
    assert_eq!((entries.len(), &entries[0]), (ids.len(), &Value::Null));
    let own: Vec<Option<f32>> = entries[1..]
        .iter()
        .zip(&ids[1..])
        .map(|(entry, id)| entry[id.to_string()]["logprob"].as_f64().map(|l| l as f32))
        .collect();
    assert!(close(&own));
    for (entry, id) in entries[1..].iter().zip(&ids[1..]) {
        let rank = entry[id.to_string()]["rank"].as_u64().expect("a rank");
        assert_eq!(entry.as_object().expect("an object").len(), if rank <= 2 { 2 } else { 3 });
    }
}

#[test]
fn a_stop_ends_a_text_before_it_and_counts_the_tokens_that_it_took() {
    let server = serve(Limits::default(), &[]);
    let ids = server.tokenizer.encode("Tom").expect("ids");
    let alone = server.alone(&ids, &server.sampling(100, 0.0, 0), 0);
    let text = server.tokenizer.decode_text(&alone.token_ids);
    let stop: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
    let end = text.find(&stop).expect("it is in there");
    for stream in [false, true] {
        let body = json!({"prompt": "Tom", "max_tokens": 100, "temperature": 0, "stop": [stop, "never"], "stream": stream, "stream_options": stream.then(|| json!({"include_usage": true}))});
        let reply = server.post(COMPLETIONS, &body.to_string());
        let (found, reason, usage) = match stream {
            false => {
                let reply = reply.json();
                let choice = &reply["choices"][0];
                (
                    choice["text"].as_str().unwrap().to_owned(),
                    choice["finish_reason"].clone(),
                    reply["usage"].clone(),
                )
            }
            true => {
                let events = reply.events();
                let text = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect::<String>();
                let n = events.len();
                (text, events[n - 2]["choices"][0]["finish_reason"].clone(), events[n - 1]["usage"].clone())
            }
        };
        assert_eq!((found.as_str(), &reason), (&text[..end], &json!("stop")));
        let n = usage["completion_tokens"].as_u64().expect("a count") as usize;
        let whole = server.tokenizer.decode_text(&alone.token_ids[..n]);
        let before = server.tokenizer.decode_text(&alone.token_ids[..n - 1]);
        assert!(whole.contains(&stop) && !before.contains(&stop), "{n}");
    }
}

#[test]
fn the_sink_has_every_answer_before_its_end_is_sent() {
    let server = serve(Limits::default(), &["sesame"]);
    let body = r#"{"prompt": "Tom", "max_tokens": 3, "n": 2, "temperature": 0}"#;
    assert_eq!(server.post(COMPLETIONS, body).status, 401);
    assert_eq!(server.post_with(COMPLETIONS, body, "Authorization: Bearer wrong\r\n").status, 401);
    let reply = server.post_with(COMPLETIONS, body, "Authorization: Bearer sesame\r\n");
    let text = reply.json()["choices"][0]["text"].as_str().expect("text").to_owned();
    let notes = server.notes.0.lock().unwrap().clone();
    assert_eq!(notes, [format!("completions {body} key=true {text}:3:length|{text}:3:length")]);
    assert_eq!((server.get("/healthz").status, server.get("/metrics").status), (200, 401));
    // What cannot be written down is not given.
    *server.notes.1.lock().unwrap() = true;
    let refused = server.post_with(COMPLETIONS, body, "Authorization: Bearer sesame\r\n");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (500, &json!("log_failed")));
    let chat = r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "stream": true}"#;
    let refused = server.post_with(CHAT, chat, "Authorization: Bearer sesame\r\n");
    let text = String::from_utf8(refused.body).expect("text");
    assert!(text.contains("log_failed") && !text.contains("[DONE]"), "{text}");
    assert_eq!(server.get("/healthz").status, 503);
}

#[test]
fn fields_that_would_change_the_answer_are_refused_by_their_names() {
    let server = serve(Limits::default(), &[]);
    let long = vec![1; CONTEXT + 1];
    let text = "a ".repeat(1 << 20);
    let base = json!({"prompt": "a", "max_tokens": 1});
    for (field, value, status) in [
        ("top_k", json!(40), 400),
        ("presence_penalty", json!(0.5), 400),
        ("logit_bias", json!({"5": 1}), 400),
        ("best_of", json!(3), 400),
        ("suffix", json!("x"), 400),
        ("no_such_field", json!(1), 400),
        ("temperature", json!(-1), 400),
        ("temperature", json!("hot"), 400),
        ("top_p", json!(0), 400),
        ("max_tokens", json!(-1), 400),
        ("max_tokens", json!(1.5), 400),
        ("max_tokens", json!(1e9), 400),
        ("n", json!(0), 400),
        ("n", json!(100_000), 400),
        ("stop", json!(""), 400),
        ("stop", json!([1]), 400),
        ("logprobs", json!(21), 400),
        ("seed", json!(0.5), 400),
        ("stream_options", json!({"include_usage": true}), 400),
        ("model", json!("another"), 404),
        ("prompt", json!(""), 400),
        ("prompt", json!([]), 400),
        ("prompt", json!([1, -1]), 400),
        ("prompt", json!([1, 4_000_000_000u32]), 400),
        ("prompt", json!([[1], "a", {}]), 400),
        ("prompt", json!(long), 400),
        ("prompt", json!(text), 400),
        ("prompt", json!({"a": 1}), 400),
    ] {
        let mut body = base.clone();
        body[field] = value;
        let reply = server.post(COMPLETIONS, &body.to_string());
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["param"]), (status, &json!(field)), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for (field, value) in [
        ("user", json!("me")),
        ("top_k", json!(-1)),
        ("presence_penalty", json!(0)),
        ("logit_bias", json!({})),
        ("best_of", json!(1)),
        ("seed", json!(-5)),
        ("stop", Value::Null),
        ("response_format", json!({"type": "text"})),
        ("model", json!("tiny")),
    ] {
        let mut body = base.clone();
        body[field] = value;
        assert_eq!(server.post(COMPLETIONS, &body.to_string()).status, 200, "{field}");
    }
    for (messages, param) in [
        (json!([]), "messages"),
        (json!("hello"), "messages"),
        (json!([{"role": "user"}]), "messages[0]"),
        (json!([{"role": "nobody", "content": "a"}]), "messages[0]"),
        (
            json!([{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "image_url"}]}]),
            "messages[1]",
        ),
        (json!([7]), "messages[0]"),
    ] {
        let reply = server.post(CHAT, &json!({"messages": messages}).to_string());
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)));
    }
}
