package docscode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// preamble is what every fragment can use without showing where it comes from: ctx, c, cfg, and
// bill, which stands for the work of a handler. docs/README.md tells readers of it.
const preamble = `package docs

import "context"

// bill is somebody's work.
func bill(ctx context.Context, order []byte) error { return ctx.Err() }
`

// A fragment becomes the inner block of this function, in which it may declare ctx, c and cfg anew.
const (
	before = "package docs; func _(ctx context.Context, c *natty.Client, cfg natty.Config) error {{\n"
	after  = "\n}; return nil }"
)

// packages are those that fragments may use. Whole programs import what they want.
var packages = func() map[string]string {
	byName := map[string]string{}
	for _, p := range []string{
		"context", "crypto/tls", "database/sql", "encoding/json", "errors", "fmt", "log", "log/slog", "net/http",
		"os", "os/signal", "strings", "sync", "sync/atomic", "syscall", "testing", "time",
		"github.com/nats-io/nats.go/jetstream",
		"github.com/nats-io/nats-server/v2/server",
		"github.com/natty-go/natty", "github.com/natty-go/natty/nattytest",
		"github.com/natty-go/natty/nattyotel", "github.com/natty-go/natty/nattyprom",
		"github.com/prometheus/client_golang/prometheus",
		"github.com/prometheus/client_golang/prometheus/promhttp", "go.opentelemetry.io/otel/trace",
	} {
		byName[path.Base(p)] = p
	}
	byName["nats"] = "github.com/nats-io/nats.go"
	byName["director"] = "github.com/relistan/go-director"
	return byName
}()

// TestGoCodeInTheDocumentsCompiles type-checks the Go code of the documents. The blocks of one
// document are one package, and can use each other's declarations. A block that begins with a
// package clause is a program by itself.
func TestGoCodeInTheDocumentsCompiles(t *testing.T) {
	t.Parallel()
	c := checker{fset: token.NewFileSet(), lenient: map[*token.File]bool{}}
	for file, text := range documents(t) {
		if path.Dir(file) == "docs" || path.Base(file) == "README.md" {
			blocks, _ := split(file, text)
			c.parse(blocks)
		}
	}
	require.Greater(t, len(c.packages), 3, "packages")
	c.check(t)
	slices.Sort(c.wrong)
	for _, wrong := range c.wrong {
		t.Error(wrong)
	}
}

// checker parses and type-checks blocks.
type checker struct {
	fset     *token.FileSet
	packages [][]*ast.File
	// lenient are the fragments: what a fragment declares need not be used in it.
	lenient map[*token.File]bool
	wrong   []string
}

// parse parses the blocks of one document.
func (c *checker) parse(blocks []block) {
	var shared []*ast.File
	for _, b := range blocks {
		if b.language != "go" {
			continue
		}
		file, err := c.parseBlock(b)
		switch {
		case err != nil:
			c.wrong = append(c.wrong, err.Error())
		case file.Name.Name == "docs":
			shared = append(shared, file)
		default:
			c.packages = append(c.packages, []*ast.File{file})
		}
	}
	if len(shared) > 0 {
		file, err := parser.ParseFile(c.fset, "preamble.go", preamble, parser.SkipObjectResolution)
		if err != nil {
			panic(err)
		}
		c.packages = append(c.packages, append(shared, file))
	}
}

// parseBlock parses a program, declarations, or a fragment.
func (c *checker) parseBlock(b block) (*ast.File, error) {
	if formatted, err := format.Source([]byte(b.code)); err == nil && strings.TrimRight(string(formatted), "\n") != b.code {
		c.wrong = append(c.wrong, fmt.Sprintf("%s:%d: gofmt would change this block", b.file, b.line))
	}
	code := fmt.Sprintf("//line %s:%d:1\n%s", b.file, b.line, b.code)
	if file, err := c.parseFile(code); err == nil {
		return file, nil
	} else if strings.HasPrefix(b.code, "package ") {
		return nil, err
	}
	if file, err := c.parseFile("package docs\n" + code); err == nil {
		addImports(file)
		return file, nil
	}
	file, err := c.parseFile(before + code + after)
	if err != nil {
		return nil, err
	}
	c.lenient[c.fset.File(file.FileStart)] = true
	addImports(file)
	return file, nil
}

func (c *checker) parseFile(code string) (*ast.File, error) {
	return parser.ParseFile(c.fset, "", code, parser.SkipObjectResolution)
}

// addImports imports the packages that a file seems to use. What is a variable of that name is
// imported too, and an import that is not used does no harm here.
func addImports(file *ast.File) {
	used := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && packages[x.Name] != "" {
				used[packages[x.Name]] = true
			}
		}
		return true
	})
	decl := &ast.GenDecl{Tok: token.IMPORT}
	for _, p := range slices.Sorted(maps.Keys(used)) {
		spec := &ast.ImportSpec{Path: &ast.BasicLit{Kind: token.STRING, Value: strconv.Quote(p)}}
		file.Imports = append(file.Imports, spec)
		decl.Specs = append(decl.Specs, spec)
	}
	if len(decl.Specs) > 0 {
		file.Decls = append([]ast.Decl{decl}, file.Decls...)
	}
}

// check type-checks all packages.
func (c *checker) check(t *testing.T) {
	exports := exportData(t, c.imports())
	config := types.Config{
		Importer: importer.ForCompiler(c.fset, "gc", func(p string) (io.ReadCloser, error) {
			if exports[p] == "" {
				return nil, fmt.Errorf("no package %s", p)
			}
			return os.Open(exports[p])
		}),
		Error: func(err error) {
			wrong, ok := errors.AsType[types.Error](err)
			if !ok {
				c.wrong = append(c.wrong, err.Error())
			} else if !wrong.Soft || wrong.Pos.IsValid() && !c.lenient[c.fset.File(wrong.Pos)] {
				c.wrong = append(c.wrong, fmt.Sprintf("%s: %s", c.fset.Position(wrong.Pos), wrong.Msg))
			}
		},
	}
	for _, files := range c.packages {
		_, _ = config.Check("docs", c.fset, files, nil) // Error has heard of every error
	}
}

// imports returns what is imported anywhere.
func (c *checker) imports() []string {
	all := map[string]bool{}
	for _, files := range c.packages {
		for _, file := range files {
			for _, spec := range file.Imports {
				if p, err := strconv.Unquote(spec.Path.Value); err == nil {
					all[p] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// exportData returns the files from which packages can be imported, by their path. The go command
// builds what it has not built yet.
func exportData(t *testing.T, paths []string) map[string]string {
	t.Helper()
	args := append([]string{"list", "-e", "-export", "-json=ImportPath,Export,Error", "--"}, paths...)
	list := exec.CommandContext(t.Context(), "go", args...)
	list.Dir = root
	stderr := new(bytes.Buffer)
	list.Stderr = stderr
	out, err := list.Output()
	require.NoError(t, err, stderr)
	exports := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p struct {
			ImportPath, Export string
			Error              *struct{ Err string }
		}
		require.NoError(t, d.Decode(&p))
		if p.Error != nil {
			assert.Fail(t, p.Error.Err, p.ImportPath)
		}
		exports[p.ImportPath] = p.Export
	}
	return exports
}

// TestCodeThatDoesNotCompileIsNamedByFileAndLine tests the test above.
func TestCodeThatDoesNotCompileIsNamedByFileAndLine(t *testing.T) {
	t.Parallel()
	const text = "# Title\n\n```go\nerr := c.Publich(ctx, \"orders.new\", nil)\n```\n\n" +
		"```go\nfunc unused() {\n\tn := 1\n}\n```\n\n```go\nif {\n```\n\n```go\nn := len(cfg.Name)\n```\n\n" +
		"```go\npackage main\n\nimport \"os\"\n\nfunc main() {}\n```\n"
	c := checker{fset: token.NewFileSet(), lenient: map[*token.File]bool{}}
	blocks, _ := split("docs/a.md", text)
	c.parse(blocks)
	c.check(t)
	slices.Sort(c.wrong)
	require.Len(t, c.wrong, 4, c.wrong)
	assert.Regexp(t, `^docs/a.md:14:4: missing condition`, c.wrong[0])
	assert.Regexp(t, `^docs/a.md:24:8: "os" imported and not used`, c.wrong[1])
	assert.Regexp(t, `^docs/a.md:4:10: c.Publich undefined`, c.wrong[2])
	assert.Regexp(t, `^docs/a.md:9:2: declared and not used: n`, c.wrong[3])
}
