//! Rules: settings for images by name, `[[rule]]` in the configuration file.
//!
//! A rule's `match` is a glob over the path below the mount point: `*` and `?` stay within a component,
//! `**` crosses them. The first rule that matches an image counts; what it does not say stays at its
//! default. An image's own settings file wins over rules.

use std::path::Path;

use serde::Deserialize;

use super::units::Unparsable;

/// How a pattern matches paths.
const MATCHING: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// What holds for the images that a pattern matches.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// Nobody writes these images.
    #[serde(default)]
    pub immutable: Option<bool>,
}

/// A glob over paths below the mount point.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(glob::Pattern);

impl TryFrom<String> for Pattern {
    type Error = Unparsable;

    fn try_from(text: String) -> Result<Pattern, Unparsable> {
        glob::Pattern::new(text.trim_start_matches('/'))
            .map(Pattern)
            .map_err(|error| {
                Unparsable::new(format!(
                    "`{text}` is not a pattern ({}); write for example golden/*.qcow2",
                    error.msg
                ))
            })
    }
}

/// All rules, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    pub fn new(rules: Vec<Rule>) -> Rules {
        Rules(rules)
    }

    /// The rule for the image at `path` below the mount point.
    pub fn find(&self, path: &Path) -> Option<&Rule> {
        self.0
            .iter()
            .find(|rule| rule.pattern.0.matches_path_with(path, MATCHING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        #[derive(Deserialize)]
        struct File {
            rule: Vec<Rule>,
        }
        Rules::new(toml::from_str::<File>(text).expect("rules").rule)
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = rules(
            "[[rule]]\nmatch = \"golden/scratch.*\"\nimmutable = false\n\
             [[rule]]\nmatch = \"/golden/*.qcow2\"\nimmutable = true\n\
             [[rule]]\nmatch = \"iso/**/*.iso\"\nimmutable = true\n",
        );
        let immutable = |path: &str| rules.find(Path::new(path)).and_then(|rule| rule.immutable);
        assert_eq!(immutable("golden/a.qcow2"), Some(true));
        assert_eq!(immutable("golden/scratch.qcow2"), Some(false));
        assert_eq!(immutable("golden/old/a.qcow2"), None);
        assert_eq!(immutable("a.qcow2"), None);
        assert_eq!(immutable("iso/x/y/a.iso"), Some(true));
        assert_eq!(immutable("iso/a.iso"), Some(true));
    }
}
