//! Names of files by patterns, as the Hugging Face hub writes them: `*`, `?` and `[a-z]` within a directory, `**` for any number of
//! directories.

/// A path's segments against a pattern's. Names that begin with a dot, and directories that begin with two underscores, are matched
/// by patterns that begin so alone.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let path: Vec<&str> = path.split('/').collect();
    // reach[j]: what was read of the pattern matches the first j segments.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        next[0] = part == "**" && reach[0];
        for (j, name) in path.iter().enumerate() {
            let is_special = name.starts_with('.') || (name.starts_with("__") && j + 1 < path.len());
            let asked_for = part.starts_with('.') || part.starts_with("__");
            next[j + 1] = match part {
                "**" => reach[j + 1] || (next[j] && !is_special),
                _ => reach[j] && (asked_for || !is_special) && segment_matches(part, name),
            };
        }
        reach = next;
    }
    reach[path.len()]
}

/// Whether a pattern names one file alone.
pub(super) fn is_plain(pattern: &str) -> bool {
    !pattern.contains(['*', '?', '['])
}

fn segment_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Behind the last star, and where in the name it was tried.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            star = Some((p, n));
        } else if let Some(behind) = name.get(n).and_then(|c| one_matches(&pattern[p..], *c)) {
            p += behind;
            n += 1;
        } else if p == pattern.len() && n == name.len() {
            return true;
        } else if let Some((behind, tried)) = star.filter(|(_, tried)| *tried < name.len()) {
            star = Some((behind, tried + 1));
            (p, n) = (behind, tried + 1);
        } else {
            return false;
        }
    }
}

/// Characters of the pattern that stand for `c`, if they do.
fn one_matches(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '[' => {
            let Some(end) = pattern.iter().skip(2).position(|c| *c == ']').map(|at| at + 2) else {
                return (c == '[').then_some(1);
            };
            let set = &pattern[1..end];
            let (not, set) =
                if matches!(set[0], '!' | '^') && set.len() > 1 { (true, &set[1..]) } else { (false, set) };
            let mut within = false;
            let mut at = 0;
            while at < set.len() {
                match set.get(at + 2).filter(|_| set[at + 1] == '-') {
                    Some(last) => {
                        within |= (set[at]..=*last).contains(&c);
                        at += 3;
                    }
                    None => {
                        within |= set[at] == c;
                        at += 1;
                    }
                }
            }
            (within != not).then_some(end + 1)
        }
        other => (other == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_and_sets_stand_for_names() {
        for (pattern, path) in [
            ("data/train-*", "data/train-00000-of-00001.parquet"),
            ("./a.jsonl", "a.jsonl"),
            ("**/a", "a"),
            ("**/a", "x/y/a"),
            ("x/**/a", "x/a"),
            ("**", "x/y/a"),
            ("*a*b*", "xaxbx"),
            ("[]x]", "]"),
            ("[a-c]-[!0-9]", "b-x"),
            ("[ab", "[ab"),
            ("é?", "éü"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*", "x/a"),
            ("data/train-*", "data/train.parquet"),
            ("*a*b*", "xbxax"),
            ("[a-c]", "d"),
            ("a", "a/b"),
            ("**/a", "x/.y/a"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        assert!(!matches(&"*a".repeat(2000), &"a".repeat(1999)), "in no more than quadratic time");
    }

    proptest! {
        #[test]
        fn any_pattern_ends_and_a_name_matches_itself(pattern in "[a-c*?\\[\\]!./-]{0,12}", path in "[a-c][a-c./-]{0,8}[a-c]") {
            let _ = matches(&pattern, &path);
            let path = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/");
            prop_assert!(matches(&path, &path), "{}", path);
        }
    }
}
