// Package docscode has no code of its own. Its tests compile the Go code in the Markdown files of
// this repository, and follow the links in them.
package docscode

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// root is the root of the repository, as seen from this folder.
const root = "../../.."

// block is code in a Markdown file: a fenced block, or Go declarations in a comment that begins with
// "<!-- go", which readers do not see.
type block struct {
	language string // as the fence names it
	file     string // its path from the root
	line     int    // of the first line of code
	code     string
}

// fenceLine is where a block of code begins or ends, also inside of a list.
var fenceLine = regexp.MustCompile("^ *(`{3,}|~{3,}) *([a-z]*)")

// split returns the code in a Markdown file, and the lines that are not code. Those that are code are
// empty there.
func split(file, text string) (blocks []block, prose []string) {
	lines := strings.Split(text, "\n")
	prose = make([]string, len(lines))
	end, language, first := "", "", 0
	for i, line := range lines {
		fence := fenceLine.FindStringSubmatch(line)
		switch {
		case end != "" && strings.TrimSpace(line) == end:
			blocks = append(blocks, block{language, file, first + 1, strings.Join(lines[first:i], "\n")})
			end = ""
		case end != "":
		case fence != nil:
			end, language, first = fence[1], fence[2], i+1
		case strings.TrimSpace(line) == "<!-- go":
			end, language, first = "-->", "go", i+1
		default:
			prose[i] = line
		}
	}
	return blocks, prose
}

// documents returns the texts of the Markdown files of the repository, by their path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && path != root && entry.Name() != ".github"
		if entry.IsDir() && (hidden || entry.Name() == "testdata") {
			return fs.SkipDir
		}
		if entry.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		texts[filepath.ToSlash(name)] = string(text)
		return err
	})
	require.NoError(t, err)
	require.NotEmpty(t, texts["README.md"])
	require.NotEmpty(t, texts["docs/guarantees.md"])
	return texts
}
