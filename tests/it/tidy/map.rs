//! The crate's source as the rules see it: code without tests, comments and literals, and which file uses which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

const TEST_MARK: &str = "#[cfg(test)]";

/// One file of the crate.
pub struct SourceFile {
    /// Below `src`, with `/` between the parts.
    pub path: String,
    pub text: String,
    /// The text with tests, comments and literals blanked out; line breaks stay.
    pub code: String,
    module: Vec<String>,
    imports: Vec<Import>,
    inline_paths: Vec<Vec<String>>,
    tokens: Vec<String>,
}

/// One name that a `use` brings into a file.
struct Import {
    path: Vec<String>,
    name: String,
    is_reexport: bool,
}

/// Where a path leads.
enum Target {
    /// An item that this file declares.
    Item(usize),
    /// A module itself: what is used of it, the paths through it show.
    Module,
}

/// Every file of the crate, tests and `main.rs` aside.
pub struct CrateMap {
    pub files: Vec<SourceFile>,
    modules: BTreeMap<Vec<String>, usize>,
}

/// Files that use each other's items.
pub struct Circle<'a> {
    pub module: &'a str,
    pub files: Vec<&'a str>,
    pub uses: Vec<(&'a str, &'a str)>,
}

impl CrateMap {
    pub fn get() -> &'static Self {
        static MAP: LazyLock<CrateMap> = LazyLock::new(CrateMap::read);
        &MAP
    }

    fn read() -> Self {
        let mut files: Vec<_> = rust_files("src")
            .into_iter()
            .filter(|(path, _)| path != "main.rs")
            .map(|(path, text)| SourceFile::new(path, text))
            .collect();
        let tests: Vec<_> = files.iter().flat_map(SourceFile::test_modules).collect();
        files.retain(|file| !tests.iter().any(|tests| file.module.starts_with(tests)));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let modules = (0..files.len())
            .map(|index| (files[index].module.clone(), index))
            .collect();
        Self { files, modules }
    }

    pub fn text(&self, path: &str) -> &str {
        let file = self.files.iter().find(|file| file.path == path);
        &file.unwrap().text
    }

    /// Pairs of files, by index: the first uses an item that the second declares.
    fn uses(&self) -> BTreeSet<(usize, usize)> {
        let mut uses = BTreeSet::new();
        for (user, file) in self.files.iter().enumerate() {
            let imported = file
                .imports
                .iter()
                .filter(|import| !import.is_reexport || file.names(&import.name))
                .map(|import| &import.path);
            for path in imported.chain(&file.inline_paths) {
                if let Some(Target::Item(declarer)) = self.resolve(&file.module, path, 0)
                    && declarer != user
                {
                    uses.insert((user, declarer));
                }
            }
        }
        uses
    }

    /// The uses between two modules of the crate root, each once.
    pub fn module_uses(&self) -> BTreeSet<(&str, &str)> {
        self.uses()
            .into_iter()
            .map(|(user, used)| (self.files[user].top(), self.files[used].top()))
            .filter(|(user, used)| user != used)
            .collect()
    }

    /// The sets of files that use each other's items, directly or by way of others of the set.
    pub fn circles(&self) -> Vec<Circle<'_>> {
        let uses = self.uses();
        let reachable: Vec<_> = (0..self.files.len())
            .map(|file| reachable(&uses, file))
            .collect();
        let circle = |file: usize| -> Vec<usize> {
            let back = |other: &usize| reachable[*other].contains(&file);
            reachable[file].iter().copied().filter(back).collect()
        };
        let members = (0..self.files.len())
            .map(circle)
            .filter(|members| !members.is_empty())
            .collect::<BTreeSet<_>>();
        let path = |file: &usize| self.files[*file].path.as_str();
        let within = |members: Vec<usize>| Circle {
            module: self.files[members[0]].top(),
            files: members.iter().map(path).collect(),
            uses: uses
                .iter()
                .filter(|(user, used)| members.contains(user) && members.contains(used))
                .map(|(user, used)| (path(user), path(used)))
                .collect(),
        };
        members.into_iter().map(within).collect()
    }

    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<Target> {
        assert!(depth < 32, "{path:?} in {from:?} leads nowhere");
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(&[], rest, depth),
            "self" => self.walk(from, rest, depth),
            "super" => {
                let parent = &from[..from.len() - 1];
                match rest.first() {
                    Some(second) if second == "super" => self.resolve(parent, rest, depth + 1),
                    _ => self.walk(parent, rest, depth),
                }
            }
            name => {
                let file = &self.files[self.modules[from]];
                if self.modules.contains_key(&child(from, name)) {
                    self.walk(from, path, depth)
                } else {
                    let import = file.import(name).filter(|import| import.path[0] != *name)?;
                    self.resolve(from, &joined(&import.path, rest), depth + 1)
                }
            }
        }
    }

    /// Follows a path from a module, through child modules and re-exports.
    fn walk(&self, module: &[String], path: &[String], depth: usize) -> Option<Target> {
        let file = self.modules[module];
        let Some((first, rest)) = path.split_first() else {
            return Some(Target::Module);
        };
        let below = child(module, first);
        if self.modules.contains_key(&below) {
            return self.walk(&below, rest, depth);
        }
        match self.files[file].import(first) {
            Some(import) => self.resolve(module, &joined(&import.path, rest), depth + 1),
            None => Some(Target::Item(file)),
        }
    }
}

impl SourceFile {
    fn new(path: String, text: String) -> Self {
        let code = without_tests(&without_comments_and_literals(&text));
        let tokens = tokens(&code);
        let mut module: Vec<_> = path
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        if matches!(module.last().unwrap().as_str(), "mod" | "lib") {
            module.pop();
        }
        let (imports, rest) = imports(&tokens);
        Self {
            path,
            text,
            code,
            module,
            imports,
            inline_paths: inline_paths(&rest),
            tokens: rest,
        }
    }

    /// The module of the crate root that the file belongs to.
    pub fn top(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    /// The names of the types and traits that the file declares.
    pub fn declared_types(&self) -> impl Iterator<Item = &str> {
        let mut depth = 0_usize;
        self.tokens.windows(2).filter_map(move |pair| {
            match pair[0].as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                "struct" | "enum" | "trait" | "union" | "type" if depth == 0 => {
                    return Some(pair[1].as_str());
                }
                _ => {}
            }
            None
        })
    }

    /// The modules that are compiled for tests only.
    fn test_modules(&self) -> Vec<Vec<String>> {
        self.text
            .split(&format!("{TEST_MARK}\n"))
            .skip(1)
            .filter_map(|after| {
                after
                    .lines()
                    .next()?
                    .split_once("mod ")?
                    .1
                    .strip_suffix(';')
            })
            .map(|name| child(&self.module, name))
            .collect()
    }

    fn import(&self, name: &str) -> Option<&Import> {
        self.imports.iter().find(|import| import.name == name)
    }

    /// Whether the code names this, apart from `use` and `mod`.
    fn names(&self, name: &str) -> bool {
        let mut pairs = self.tokens.windows(2);
        pairs.any(|pair| pair[1] == name && pair[0] != "mod")
    }
}

/// The Rust files below a folder of the repository: their paths in that folder, and their texts.
pub fn rust_files(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let full = entry.path();
            let path = full.strip_prefix(&root).unwrap().to_str().unwrap();
            if full.is_dir() {
                folders.push(full);
            } else if path.ends_with(".rs") {
                files.push((path.to_owned(), fs::read_to_string(&full).unwrap()));
            }
        }
    }
    files
}

/// Every file that this one uses, directly or by way of others; itself only if it is in a circle.
fn reachable(uses: &BTreeSet<(usize, usize)>, file: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![file];
    while let Some(user) = open.pop() {
        let used = uses.iter().filter(|(from, _)| *from == user);
        open.extend(
            used.map(|(_, used)| *used)
                .filter(|used| found.insert(*used)),
        );
    }
    found
}

fn child(module: &[String], name: &str) -> Vec<String> {
    joined(module, &[name.to_owned()])
}

fn joined(path: &[String], rest: &[String]) -> Vec<String> {
    [path, rest].concat()
}

/// Blanks comments and literals; line breaks stay.
pub fn without_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = rest
            .find(|c: char| !is_part_of_a_name(c))
            .unwrap_or(rest.len());
        let blanked = if let Some(length) = literal(rest) {
            length
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            0
        };
        code.extend(rest[..blanked].chars().map(|c| match c {
            '\n' => '\n',
            _ => ' ',
        }));
        let kept = match blanked {
            0 => word.max(first.len_utf8()),
            _ => 0,
        };
        code.push_str(&rest[blanked..blanked + kept]);
        rest = &rest[blanked + kept..];
    }
    code
}

fn is_part_of_a_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// The length of the string or character literal that the text starts with.
fn literal(text: &str) -> Option<usize> {
    let raw = text.trim_start_matches('b');
    if let Some(raw) = raw.strip_prefix('r')
        && let opened = raw.trim_start_matches('#')
        && opened.starts_with('"')
    {
        let end = format!("\"{}", "#".repeat(raw.len() - opened.len()));
        let length = opened[1..].find(&end)?;
        return Some(text.len() - opened.len() + 1 + length + end.len());
    }
    let quote = text.chars().next()?;
    let is_char = quote == '\''
        && (text[1..].starts_with('\\') || text.chars().nth(2).is_some_and(|c| c == '\''));
    if quote != '"' && !is_char {
        return None;
    }
    let mut escaped = false;
    let inside = text[1..].char_indices().find(|(_, c)| {
        let ends = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    inside.map(|(length, _)| length + 2)
}

/// Blanks whatever follows `#[cfg(test)]`, up to its `;` or closing brace.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(TEST_MARK) {
        kept.push_str(&rest[..start]);
        let mut depth = 0;
        let end = rest[start..].find(|c| match c {
            '{' => {
                depth += 1;
                false
            }
            '}' => {
                depth -= 1;
                depth == 0
            }
            ';' => depth == 0,
            _ => false,
        });
        rest = end.map_or("", |end| &rest[start + end + 1..]);
    }
    kept + rest
}

fn tokens(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("::") {
            2
        } else if is_part_of_a_name(first) {
            rest.find(|c| !is_part_of_a_name(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        found.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    found
}

/// The imports, and the tokens outside of them.
fn imports(tokens: &[String]) -> (Vec<Import>, Vec<String>) {
    let mut found = Vec::new();
    let mut others: Vec<String> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        // `impl Trait + use<'a>` imports nothing.
        if tokens[at] == "use" && tokens[at + 1] != "<" {
            let is_reexport = others
                .last()
                .is_some_and(|last| last == "pub" || last == ")");
            let length = tokens[at..].iter().position(|token| token == ";").unwrap();
            let tree = &tokens[at + 1..at + length];
            for (path, name) in use_tree(tree) {
                found.push(Import {
                    path,
                    name,
                    is_reexport,
                });
            }
            at += length;
        }
        others.push(tokens[at].clone());
        at += 1;
    }
    (found, others)
}

/// The path and the local name of everything that the tree of a `use` imports.
fn use_tree(tree: &[String]) -> Vec<(Vec<String>, String)> {
    let Some(open) = tree.iter().position(|token| token == "{") else {
        let (path, alias) = match tree {
            [path @ .., keyword, alias] if keyword == "as" => (path, Some(alias)),
            path => (path, None),
        };
        let mut path: Vec<_> = path.iter().filter(|part| *part != "::").cloned().collect();
        path.pop_if(|last| last == "self");
        let name = alias.or_else(|| path.last()).cloned();
        return name.map(|name| (path, name)).into_iter().collect();
    };
    let prefix: Vec<_> = tree[..open]
        .iter()
        .filter(|part| *part != "::")
        .cloned()
        .collect();
    let mut depth = 0;
    let branches = tree[open + 1..tree.len() - 1].split(|token| {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        token == "," && depth == 0
    });
    branches
        .filter(|branch| !branch.is_empty())
        .flat_map(|branch| use_tree(&[&prefix[..], branch].concat()))
        .collect()
}

/// Every `a::b::c` of the code.
fn inline_paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    let mut joins = false;
    for token in tokens {
        if token == "::" {
            joins = true;
        } else if token.starts_with(is_part_of_a_name) {
            match found.last_mut() {
                Some(path) if joins => path.push(token.clone()),
                _ => found.push(vec![token.clone()]),
            }
            joins = false;
        } else {
            // Any other token ends the path.
            found.push(Vec::new());
            joins = false;
        }
    }
    found.retain(|path| path.len() > 1);
    found
}
