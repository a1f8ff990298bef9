package docscode

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
)

var (
	inlineCode = regexp.MustCompile("`[^`]*`")
	linkTarget = regexp.MustCompile(`\]\(([^()\s]+)(?: "[^"]*")?\)`)
	heading    = regexp.MustCompile(`^#{1,6} +(.*)$`)
	htmlID     = regexp.MustCompile(`<a (?:id|name)="([^"]+)">`)
)

// TestLinksInTheDocumentsLeadSomewhere follows every link to a file or a heading of this repository.
func TestLinksInTheDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	wrong := brokenLinks(texts, func(file string) bool {
		_, err := os.Stat(filepath.Join(root, file))
		return err == nil
	})
	assert.Empty(t, wrong, strings.Join(wrong, "\n"))
}

// TestTheIndexNamesEveryPage fails for a page of the book that no reader would find.
func TestTheIndexNamesEveryPage(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	const index = "docs/README.md"
	for file := range texts {
		if path.Dir(file) == "docs" && file != index && !strings.Contains(texts[index], "]("+path.Base(file)) {
			t.Errorf("%s does not link to %s", index, file)
		}
	}
}

// brokenLinks returns the links that lead nowhere, each with its file and line.
func brokenLinks(texts map[string]string, exists func(file string) bool) (wrong []string) {
	anchors := map[string][]string{}
	for file, text := range texts {
		anchors[file] = anchorsOf(file, text)
	}
	for file, text := range texts {
		_, prose := split(file, text)
		for i, line := range prose {
			for _, link := range linkTarget.FindAllStringSubmatch(inlineCode.ReplaceAllString(line, "`code`"), -1) {
				if why := broken(file, link[1], anchors, exists); why != "" {
					wrong = append(wrong, fmt.Sprintf("%s:%d: %s %s", file, i+1, link[1], why))
				}
			}
		}
	}
	slices.Sort(wrong)
	return wrong
}

// broken says what is wrong with a link.
func broken(from, link string, anchors map[string][]string, exists func(file string) bool) string {
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return "" // nothing here depends on other sites
	}
	target, anchor, _ := strings.Cut(link, "#")
	file := from
	if target != "" {
		file = path.Join(path.Dir(from), target)
	}
	switch {
	case !exists(file):
		return "is not there"
	case anchor != "" && !slices.Contains(anchors[file], anchor):
		return "has no such heading"
	}
	return ""
}

// anchorsOf returns the anchors that code hosts make for the headings of a document.
func anchorsOf(file, text string) (all []string) {
	times := map[string]int{}
	_, prose := split(file, text)
	for _, line := range prose {
		for _, id := range htmlID.FindAllStringSubmatch(line, -1) {
			all = append(all, id[1])
		}
		h := heading.FindStringSubmatch(line)
		if h == nil {
			continue
		}
		anchor := anchorOf(h[1])
		if times[anchor]++; times[anchor] > 1 {
			anchor = fmt.Sprintf("%s-%d", anchor, times[anchor]-1)
		}
		all = append(all, anchor)
	}
	return all
}

// anchorOf returns the anchor of a heading: lower case, without punctuation, with - for each space.
func anchorOf(title string) string {
	title = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(title, "$1")
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(title))
}

// TestBrokenLinksAreNamedByFileAndLine tests the test above.
func TestBrokenLinksAreNamedByFileAndLine(t *testing.T) {
	t.Parallel()
	texts := map[string]string{
		"README.md": "[a](docs/a.md#what-it-is-2-ways)\n[b](docs/b.md)\n`[c](docs/c.md)` [d](#none)\n```\n[e](e.md)\n```\n",
		"docs/a.md": "# What `it` is: 2 ways\n\n## Twice\n## Twice\n[up](../README.md), [again](#twice-1), [out](https://example.com/x)",
	}
	wrong := brokenLinks(texts, func(file string) bool { return texts[file] != "" })
	assert.Equal(t, []string{
		"README.md:2: docs/b.md is not there",
		"README.md:3: #none has no such heading",
	}, wrong)
}
