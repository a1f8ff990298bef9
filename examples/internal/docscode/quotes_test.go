package docscode

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const troubleshooting = "docs/troubleshooting.md"

var (
	joinedStrings = regexp.MustCompile(`"\s*\+\s*"`)
	formatVerb    = regexp.MustCompile(`%[a-z]`)
	codeSpan      = regexp.MustCompile("`([^`]+)`")
	// partOfText is what stands between placeholders and what is joined when errors are wrapped.
	partOfText = regexp.MustCompile(`…|; |: `)
)

// TestTroubleshootingQuotesWhatTheCodeSays looks up every text in the first column of the tables:
// who searches for an error finds it only if the page has the words of the code.
func TestTroubleshootingQuotesWhatTheCodeSays(t *testing.T) {
	t.Parallel()
	code := goCode(t)
	quotes := 0
	for i, line := range strings.Split(documents(t)[troubleshooting], "\n") {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		symptom := strings.Split(line, "|")[1]
		for _, quote := range codeSpan.FindAllStringSubmatch(symptom, -1) {
			for _, part := range partOfText.Split(quote[1], -1) {
				quotes++
				part = strings.Trim(part, ` "`)
				if !strings.Contains(code, part) { // assert.Contains would print all the code
					t.Errorf("%s:%d: no code says %q any more", troubleshooting, i+1, part)
				}
			}
		}
	}
	assert.Greater(t, quotes, 50)
}

// goCode returns all of the repository's Go code that is not a test, with long strings joined.
func goCode(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	require.NoError(t, err)
	return formatVerb.ReplaceAllString(joinedStrings.ReplaceAllString(all.String(), ""), "…")
}
